"""The HTTP address: every RPC as JSON, what OpenAI's clients send, a page, metrics and probes."""
