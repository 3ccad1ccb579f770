"""Files that callers store under names of their own."""
