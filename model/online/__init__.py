"""Online learning: a stream is scored first and then learned from."""
