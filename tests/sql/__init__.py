"""The SQL functions, called as applications call them."""
