"""Numerics engines: what computes inside a virtual NPU."""
