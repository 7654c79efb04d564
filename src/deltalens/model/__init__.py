"""A running transformer: load and generate."""
