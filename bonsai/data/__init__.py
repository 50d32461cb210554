"""From files to batches: documents read, split, encoded and written; what was written read back."""
