"""Converts messages of the contract: requests to settings, and results to replies."""
