"""Qualcomm AI Hub: runs on devices of `kind: aihub`, through the REST layer of the real qai_hub client."""
