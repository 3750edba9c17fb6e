"""The numeric fingerprint of a chip: small models that show how it rounds, clamps and accumulates."""
