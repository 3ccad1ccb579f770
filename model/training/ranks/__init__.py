"""Training on many machines: joining the ranks of a run, and following its rank 0."""
