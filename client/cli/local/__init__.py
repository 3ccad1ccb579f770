"""Commands that start a server on this machine: `treadle serve` and `treadle run`."""
