"""Many processes: workers of every kind, and children of every birth."""
