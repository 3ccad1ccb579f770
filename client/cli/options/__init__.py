"""Options of the `treadle` command: parsers, groups of options and types of values."""
