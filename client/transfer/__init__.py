"""Models that travel: their files are fetched from a server, sent to one, or copied."""
