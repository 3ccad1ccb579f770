"""Input of the `treadle` command: files, lines and JSON."""
