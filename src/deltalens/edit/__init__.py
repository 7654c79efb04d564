"""Edits as data, and the four ways in which one edit is carried out."""
