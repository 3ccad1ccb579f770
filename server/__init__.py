"""The gRPC server: the only room that knows both the wire contract and the model."""
