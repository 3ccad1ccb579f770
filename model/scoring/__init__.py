"""Scoring: the probability of texts and streams, and texts as vectors."""
