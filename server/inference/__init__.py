"""Generation, scoring and online learning, for many callers at the same time."""
