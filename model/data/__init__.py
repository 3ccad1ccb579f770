"""Corpora: from files to token arrays, and from token arrays to batches."""
