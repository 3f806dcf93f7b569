"""The pure core: values in, values out; no clock, no disk, no randomness of its own."""
