"""What ``agentwire bench`` measures: latency, throughput and the bus, through real processes.

``plan`` says what is measured in which order, ``methods`` how one message of each method is sent,
``drive`` sends many and reads the clock, ``session`` joins them to running agents, ``figures``
turns what was seen into the flat map of a ``record``, and ``plots`` draws it.
"""
