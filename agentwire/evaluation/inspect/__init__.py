"""What a bridge's soft tokens look like: norms, nearest words, maps."""
