"""Runs a scenario's methods over the same rows, and reports what they measured."""
