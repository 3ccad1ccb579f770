"""The gRPC surface: the servicer and what every call passes through."""
