"""Bits in, numbers out: differences, metrics, equivalence classes; no I/O."""
