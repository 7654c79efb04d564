"""Figures and the page; reads stores only."""
