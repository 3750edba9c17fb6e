"""The device matrix: YAML in, frozen specs out, every mistake with its place."""
