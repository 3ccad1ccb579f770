"""Compiled loops over NumPy arrays: the recurrent cells, the loss, the optimizers and the draw."""
