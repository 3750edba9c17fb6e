"""RunRecord and the store it is written to before anybody judges it."""
