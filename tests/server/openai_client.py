"""`connect` makes the client of the `openai` package, for the tests of `/v1/`."""

from __future__ import annotations

import urllib.request

import openai

from .harness import PATIENCE_S, Server

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Sends requests as they are."""


def connect(server: Server, key: str = "none") -> openai.OpenAI:
    """Returns a client of a server with an HTTP address."""
    url = f"{server.http_url}/v1"
    # No proxy of the environment can help on this machine.
    http_client = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(
        base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S, http_client=http_client
    )
