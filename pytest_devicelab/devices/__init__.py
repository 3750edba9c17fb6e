"""Device: push, pull, shell, logcat and properties over a transport."""
