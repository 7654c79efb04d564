"""Tasks and their scores."""
