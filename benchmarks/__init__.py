"""Checks the kernels on this machine, then measures them next to other libraries."""
