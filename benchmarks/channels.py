"""How the scripts that ask a server of their own make a channel to it."""

from __future__ import annotations

THIS_MACHINE = [("grpc.enable_http_proxy", 0)]
"""gRPC obeys $http_proxy even for this machine, where no proxy can help."""
