"""Displays that rich draws on a terminal. Nothing here is imported unless something is drawn."""
