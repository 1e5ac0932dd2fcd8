"""The static engine: CUDA graphs of fixed shapes."""
