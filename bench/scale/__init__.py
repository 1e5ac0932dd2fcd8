"""Agents, connections and load of ``bench/scaling.py``."""
