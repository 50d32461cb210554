"""Architectures beside model.py, the contract that all keep, and every way to get one."""
