"""The session's lab: adb server, virtual devices, leases, and carrying a run out."""
