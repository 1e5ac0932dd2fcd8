"""Trained rivals of the bridge: probes on the sender's states, and receivers that read the text."""
