"""Files of a repro bundle that run without this project."""
