"""Programs for the CPU."""
