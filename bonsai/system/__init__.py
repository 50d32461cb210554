"""What everything stands on: errors, devices and processes, values, tables, provenance."""
