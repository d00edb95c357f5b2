"""Writes what Envoy needs to turn JSON into gRPC: `python -m tools.descriptor_set FILE`.

The file is a serialised `google.protobuf.FileDescriptorSet` of the public services, made from the
generated code, so that the two cannot differ. Error details are in it too: without their types
Envoy could not write an error's `google.rpc.Status` as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path


def descriptor_set() -> bytes:
    """The public services and their dependencies, each file after those that it imports."""
    # Needed only once a stack starts, and slow to import.
    from google.protobuf import descriptor_pb2
    from google.protobuf.descriptor import FileDescriptor
    from google.rpc import error_details_pb2

    from ml import mediapipe_pb2, model_management_pb2, transformers_pb2

    files: dict[str, bytes] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        files.setdefault(file.name, file.serialized_pb)

    for module in (mediapipe_pb2, model_management_pb2, transformers_pb2, error_details_pb2):
        add(module.DESCRIPTOR)
    parse = descriptor_pb2.FileDescriptorProto.FromString
    return descriptor_pb2.FileDescriptorSet(file=map(parse, files.values())).SerializeToString()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(descriptor_set())
