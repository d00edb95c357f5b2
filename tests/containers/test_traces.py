"""Traces from the containers reach a collector in their network."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from docker.models.containers import Container

from ml import (
    common_pb2,
    mediapipe_pb2,
    mediapipe_pb2_grpc,
    transformers_pb2,
    transformers_pb2_grpc,
)
from ml import model_management_pb2_grpc as models_rpc
from tests.containers.containers import SERVICES, ContainerSet, image_name
from tests.support.stack import wait_for

COLLECTOR = """
import concurrent.futures
import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

class Collector(rpc.TraceServiceServicer):
    def Export(self, request, context):
        for group in request.resource_spans:
            values = {a.key: a.value.string_value for a in group.resource.attributes}
            for scope in group.scope_spans:
                for span in scope.spans:
                    print(values["service.name"], span.trace_id.hex(), flush=True)
        return pb.ExportTraceServiceResponse()

server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
rpc.add_TraceServiceServicer_to_server(Collector(), server)
server.add_insecure_port("0.0.0.0:4317")
server.start()
server.wait_for_termination()
"""


@pytest.fixture
def traced(images: None, models: Path, tmp_path: Path) -> Iterator[ContainerSet]:
    """The services and Envoy, sending their traces to `collector`."""
    containers = ContainerSet(
        tmp_path, profiles=(), OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4317"
    )
    try:
        containers.up()
        yield containers
    finally:
        containers.down()


@pytest.fixture
def collector(traced: ContainerSet) -> Iterator[Container]:
    """A container of that name that prints a line for each span."""
    docker = traced.client
    container = docker.containers.create(image_name("model_mgmt"), ["python", "-c", COLLECTOR])
    try:
        docker.networks.get(f"{traced.project}_services").connect(container, aliases=["collector"])
        container.start()
        yield container
    finally:
        container.remove(force=True)


def test_each_container_tells_its_part_of_a_trace(
    traced: ContainerSet, collector: Container
) -> None:
    for service in SERVICES:
        traced.wait_routed(service, 1)
    trace = uuid.uuid4().hex
    metadata = [("traceparent", f"00-{trace}-{uuid.uuid4().hex[:16]}-01")]
    frame = mediapipe_pb2.ImageRequest(
        image_data=bytes(64 * 64 * 3), format="raw", width=64, height=64
    )
    texts = transformers_pb2.GenerateEmbeddingsRequest(model="nobody/nothing", texts=["a trace"])
    with grpc.insecure_channel(traced.address) as channel:
        models_rpc.ModelManagementServiceStub(channel).GetLoadedModels(
            common_pb2.EmptyRequest(), metadata=metadata, timeout=60
        )
        mediapipe_pb2_grpc.MediapipeServiceStub(channel).DetectFaces(
            frame, metadata=metadata, timeout=60
        )
        with pytest.raises(grpc.RpcError):  # no such model, which makes a span too
            transformers_pb2_grpc.TransformersServiceStub(channel).GenerateEmbeddings(
                texts, metadata=metadata, timeout=60
            )

    def complete() -> bool:
        lines = [line.split() for line in collector.logs().decode().splitlines()]
        told = {line[0] for line in lines if line[-1] == trace}
        return told == {"envoy", "model_mgmt_svc", "text_svc", "vision_svc"}

    wait_for("spans of each service", complete)
