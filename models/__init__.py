"""Shipped stories, in plain Pyro."""
