"""The folder of a run: its names, checkpoints, lock and metrics, and what was there before."""
