"""Several servers of the same models: calls that move to another one, and what continues there."""
