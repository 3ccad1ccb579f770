"""A conversation with a model, by `treadle chat` and at the end of `treadle run`."""
