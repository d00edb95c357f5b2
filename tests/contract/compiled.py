"""The published contract, compiled: its descriptors, and a client made from it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2

CONTRACT = Path(__file__).parent / "contract.proto"


def descriptor_set(*protos: Path, root: Path) -> descriptor_pb2.FileDescriptorSet:
    """The descriptors of proto files below `root`, with what they import."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", "--include_imports"]
    command += ["--descriptor_set_out=/dev/stdout", *map(str, protos)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return descriptor_pb2.FileDescriptorSet.FromString(output)


def generate_client(folder: Path) -> None:
    """Writes contract_pb2.py and contract_pb2_grpc.py into `folder`."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{CONTRACT.parent}"]
    command += [f"--python_out={folder}", f"--grpc_python_out={folder}", str(CONTRACT)]
    subprocess.run(command, check=True)
