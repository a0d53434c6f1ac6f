"""Shipped guides, in plain Pyro."""
