"""What is known before a run: sizes, costs, memory, scaling laws."""
