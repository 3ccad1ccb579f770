"""Training by a command, without a server: `treadle-train`, on one machine or on many."""
