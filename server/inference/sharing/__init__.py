"""The time of the turns, shared by callers: a part each, and batches where nobody loses by it."""
