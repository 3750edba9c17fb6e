"""Evidence in, verdict out: pure functions of records and tensors."""
