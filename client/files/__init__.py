"""Corpora and text files: opening, decoding, formats."""
