"""Conversations over wires: models, handles, answers. No HTTP."""
