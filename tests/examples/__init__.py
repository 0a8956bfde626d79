"""The examples, run as their docstrings say, with real clients."""
