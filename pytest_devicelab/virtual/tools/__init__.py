"""Programs a virtual device has on its PATH."""
