"""The command `treadle sweep` and its displays."""
