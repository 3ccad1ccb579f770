"""Checks of a data directory, and its repair."""
