"""Tensor files of other tools: .npy, .npz, raw bytes, HDF5 and folders of them, read in chunks."""
