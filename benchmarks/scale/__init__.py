"""Measures, computes and simulates what many machines cost."""
