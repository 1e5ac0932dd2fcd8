"""Training of bridges and baselines."""
