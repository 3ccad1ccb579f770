"""Reflection, as grpcurl and other tools ask for it: versions v1 and v1alpha.

grpcio-reflection brings v1alpha alone. Version 1 is the same protocol, message for message and
field for field, in a package of another name, so the library's servicer answers both.
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
"""The service's name in version 1."""

_METHOD = "ServerReflectionInfo"


def add_reflection(server: aio.Server, services: Iterable[str]) -> None:
    """Lets callers ask a server for its services and their messages.

    Args:
        server: The server, not started yet.
        services: Full names of its services.
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
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1, {_METHOD: handler}),))


def _describe_v1() -> None:
    """Makes version 1's own description known, so that it can be asked for as well."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        text = text_format.MessageToString(file).replace("v1alpha", "v1")
        text_format.Parse(text, renamed := descriptor_pb2.FileDescriptorProto())
        pool.Add(renamed)
