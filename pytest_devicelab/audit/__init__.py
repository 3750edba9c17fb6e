"""Experiments that explain a difference: layer taps, comparisons across classes."""
