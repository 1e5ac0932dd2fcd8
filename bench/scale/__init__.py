"""What ``bench/scaling.py`` runs: agents that wait, ways to reach them, and load on them."""
