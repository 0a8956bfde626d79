"""Databases that keep text in something else than UTF8."""
