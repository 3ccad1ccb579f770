"""Output of the `treadle` command: tables, progress, curves, JSON and files."""
