"""The commands of `devicelab`, one module each: `add(commands)` declares it, and its `run` does it."""
