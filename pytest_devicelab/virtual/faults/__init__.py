"""Faults of a virtual device: one small class each, by the name the matrix gives it."""
