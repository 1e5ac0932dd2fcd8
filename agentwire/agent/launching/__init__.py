"""Who starts agent processes: this machine, another machine, or a Ray cluster."""
