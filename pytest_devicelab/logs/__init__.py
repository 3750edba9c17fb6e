"""Bytes of a log in, events out; no I/O."""
