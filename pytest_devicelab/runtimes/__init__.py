"""How a model runs on a device: compile on the host, command line, what it leaves behind."""
