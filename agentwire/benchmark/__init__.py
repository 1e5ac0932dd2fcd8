"""Benchmarks of ``agentwire bench``: latency, throughput and the bus, through real processes."""
