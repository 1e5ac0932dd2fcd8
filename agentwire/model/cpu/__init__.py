"""Packed sequences and prepacked linear layers on CPUs."""
