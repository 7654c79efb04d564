"""Intervals, tests and corrections: the only place that computes them. Imports nothing of ours."""
