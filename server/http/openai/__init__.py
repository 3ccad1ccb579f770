"""The routes under `/v1/` that OpenAI's clients call, mapped on the RPCs of the service."""
