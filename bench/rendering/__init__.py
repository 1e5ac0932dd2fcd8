"""Tables and pictures of the recorded results, made by ``bench/render.py``."""
