"""The Connect protocol: every RPC as JSON or protobuf over plain HTTP."""
