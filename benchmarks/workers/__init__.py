"""Child processes that each measure one thing on command: ours, NumPy, and the peers."""
