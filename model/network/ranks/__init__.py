"""Ranks: the processes of one run on many machines, and what they exchange in a step."""
