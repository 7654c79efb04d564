"""Directions: what they are, banks of them, from weights, from activations, and how two are compared."""
