"""Everything that touches the disk: where things lie, how they are written, how they are read back."""
