"""Sync servers of every kind, each in a process of its own."""
