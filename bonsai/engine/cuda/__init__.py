"""Faster inference on CUDA: steps captured as graphs, and kernels of our own for few rows."""
