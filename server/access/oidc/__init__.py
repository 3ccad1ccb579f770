"""Callers with a JSON Web Token of an identity provider (OpenID Connect)."""
