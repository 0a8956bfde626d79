"""Servers that are one cluster: who is there, what they ask each other, the clients here, and who emits to them."""
