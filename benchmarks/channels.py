"""`THIS_MACHINE` has the options of a channel to a server on this machine."""

from __future__ import annotations

THIS_MACHINE = [("grpc.enable_http_proxy", 0)]
"""gRPC obeys $http_proxy even for this machine, where no proxy can help."""
