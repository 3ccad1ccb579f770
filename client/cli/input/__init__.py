"""Input of the `treadle` command: files, lines, JSON and the terminal."""
