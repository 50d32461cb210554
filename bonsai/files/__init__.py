"""Files: written whole or not at all, and read within bounds, whatever their content."""
