"""HTTP next to gRPC: the same service for browsers, curl and OpenAI clients."""
