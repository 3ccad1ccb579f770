"""The display of `treadle sweep` on a terminal."""
