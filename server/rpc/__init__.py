"""The gRPC side of the server: the servicer, and the interceptor around it."""
