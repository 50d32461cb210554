"""What the engine computes faster on a CPU: packed and int8 weights, C++ for small steps."""
