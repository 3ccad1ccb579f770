"""Access to a server: TLS, tokens and the sentences about a refusal."""
