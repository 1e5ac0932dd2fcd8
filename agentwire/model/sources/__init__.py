"""From a model's name to a folder with its weights."""
