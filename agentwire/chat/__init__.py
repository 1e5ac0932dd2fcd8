"""Chat over wires: models, conversations, handles, replies. No HTTP."""
