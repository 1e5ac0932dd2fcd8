"""Runs a scenario's methods over the same rows and reports the figures."""
