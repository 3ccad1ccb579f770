"""Callers: their identity, their rights and their quotas."""
