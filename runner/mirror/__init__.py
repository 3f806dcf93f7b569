"""Copies of committed checkpoints on another medium, in a process of its own."""
