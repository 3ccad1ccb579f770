"""Compiled loops over NumPy arrays: recurrent cells, loss, optimizers, decoding and sampling."""
