"""Training steps: one from several batches, or several in one call."""
