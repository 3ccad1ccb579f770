"""`add_reflection` adds gRPC server reflection, versions v1 and v1alpha, for tools like grpcurl.

grpcio-reflection offers v1alpha only. Version v1 is the same protocol, message for message and
field for field, under another package name, so that the library's servicer answers both.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc import aio
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection,
    reflection_pb2,
    reflection_pb2_grpc,
)

V1 = "grpc.reflection.v1.ServerReflection"
"""The name of the service in version v1."""

_METHOD = "ServerReflectionInfo"


def add_reflection(server: aio.Server, services: Iterable[str]) -> None:
    """Adds the reflection services to a server.

    Args:
        server: The server, before its start.
        services: Full names of the services to describe.
    """
    _describe_v1()
    names = (*services, reflection.SERVICE_NAME, V1)
    servicer = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_registered_method_handlers(V1, {_METHOD: handler})


def _describe_v1() -> None:
    """Registers the description of version v1, so that callers can request it as well."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        text = text_format.MessageToString(file).replace("v1alpha", "v1")
        text_format.Parse(text, renamed := descriptor_pb2.FileDescriptorProto())
        pool.Add(renamed)
