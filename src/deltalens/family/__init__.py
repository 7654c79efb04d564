"""The embedded family: checkpoints as package data, the recipe that made them, and their card."""
