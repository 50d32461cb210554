"""Faster inference on a CPU: packed and int8 weights, C++ for steps of a few tokens."""
