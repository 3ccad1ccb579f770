"""Sweeps: many trainings of one model with other settings, of which the best one is kept."""
