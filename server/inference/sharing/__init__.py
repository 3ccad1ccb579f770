"""How callers share the time of the turns: a part each, and batches where nobody loses by it."""
