"""What the engine computes faster on CUDA: steps captured as graphs, small steps by own kernels."""
