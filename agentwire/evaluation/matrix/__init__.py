"""Scenarios with a matrix: one run for each combination of its axes."""
