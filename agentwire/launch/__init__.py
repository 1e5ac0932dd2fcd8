"""Who starts agents on the machines of a cluster."""
