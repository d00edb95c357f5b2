"""gRPC server reflection, v1 and v1alpha, from one handler.

grpcio-reflection serves only v1alpha, and newer tools ask for v1 first. On the wire the two differ
only in the package name, so the v1 descriptor is made from the installed one and both names are
served by the same servicer. To be removed when grpcio-reflection serves v1.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from shared.rpc.watches import Watches, limited

V1_NAME = "grpc.reflection.v1.ServerReflection"
_OLD, _NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"


def _register_v1_descriptor(pool: descriptor_pool.DescriptorPool) -> None:
    """Adds the v1 descriptor to the pool, so that reflection can describe itself."""
    text = reflection_pb2.DESCRIPTOR.serialized_pb
    file = descriptor_pb2.FileDescriptorProto.FromString(text)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = _NEW
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in (field for field in message.field if field.type_name):
            field.type_name = field.type_name.replace(f".{_OLD}.", f".{_NEW}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(_OLD, _NEW)
            method.output_type = method.output_type.replace(_OLD, _NEW)
    pool.AddSerializedFile(file.SerializeToString())


def add_reflection(server: grpc.aio.Server, service_names: Iterable[str], watches: Watches) -> None:
    """Serves reflection for itself and `service_names`, whose descriptors must be imported."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1_NAME)
    except KeyError:
        _register_v1_descriptor(pool)
    names = [*service_names, reflection.SERVICE_NAME, V1_NAME]
    servicer = ReflectionServicer(names, pool)
    for name in (reflection.SERVICE_NAME, V1_NAME):
        handler = grpc.stream_stream_rpc_method_handler(
            limited(servicer.ServerReflectionInfo, watches),
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )
