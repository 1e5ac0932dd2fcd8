"""Baselines that are trained beside a bridge and compared with it."""
