"""Decoding on CUDA: steps captured as graphs, and drawing that never waits for the host."""
