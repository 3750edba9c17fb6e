"""Several lab hosts as one lab, on Ray: each runs what its own devices are asked for, beside the USB cable."""
