"""Metrics, traces and log lines: what the server reports of itself."""
