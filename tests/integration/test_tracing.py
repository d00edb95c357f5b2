"""One trace from the client through Envoy and the services to the model's process."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import grpc
import pytest

from ml import mediapipe_pb2 as vision_pb
from ml import mediapipe_pb2_grpc as vision_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as text_pb
from ml import transformers_pb2_grpc as text_grpc
from tests.support.folders import MakeFolder
from tests.support.otlp_sink import Sink, Span, otlp_sink
from tests.support.processes import free_port
from tests.support.stack import EMBEDDER, ROOT, Stack, stack_in, wait_for

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with otlp_sink() as sink:
        yield sink


@pytest.fixture(scope="module")
def traced(sink: Sink, models: object, module_folder: MakeFolder) -> Iterator[Stack]:
    """A stack that sends its spans to the sink, with a model loaded."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(ENDPOINT, sink.endpoint)
        with stack_in(module_folder("traced")) as running:
            running.wait_serving()
            yield running


class Caller:
    """The client's end of a trace."""

    def __init__(self, sampled: bool = True) -> None:
        self.trace, self.span = uuid.uuid4().hex, uuid.uuid4().hex[:16]
        self.metadata = [("traceparent", f"00-{self.trace}-{self.span}-{int(sampled):02}")]


def load(stack: Stack, caller: Caller) -> None:
    """Loads the embedder, by its model's process where it is not loaded yet."""
    request = models_pb.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
    with stack.channel() as channel:
        models_grpc.ModelManagementServiceStub(channel).LoadModel(request, metadata=caller.metadata)


def embed(stack: Stack, caller: Caller, model: str = EMBEDDER) -> None:
    request = text_pb.GenerateEmbeddingsRequest(model=model, texts=["a trace"])
    with stack.channel() as channel:
        stub = text_grpc.TransformersServiceStub(channel)
        stub.GenerateEmbeddings(request, metadata=caller.metadata)


def wait_for_spans(sink: Sink, caller: Caller, *services: str) -> list[Span]:
    """The spans of a trace, once each of the services has sent one and the parents of all."""

    def complete() -> list[Span]:
        spans = sink.spans(caller.trace)
        rooted = all(ancestors(span, spans)[-1] == caller.span for span in spans)
        return spans if rooted and {span.service for span in spans} >= set(services) else []

    return wait_for(f"spans of {', '.join(services)}", complete)


def ancestors(span: Span, spans: list[Span]) -> list[str]:
    """The services from the span's parent up to the client's own span."""
    by_id = {one.id: one for one in spans}
    names, parent = [], span.parent
    while parent in by_id:
        names.append(by_id[parent].service)
        parent = by_id[parent].parent
    return [*names, parent]


def test_a_call_is_one_trace_down_to_the_model_s_process(traced: Stack, sink: Sink) -> None:
    load(traced, Caller())
    caller = Caller()
    embed(traced, caller)
    spans = wait_for_spans(sink, caller, "envoy", "text_svc", "text_svc.worker")
    (worker,) = (span for span in spans if span.service == "text_svc.worker")
    assert ancestors(worker, spans) == ["text_svc", "envoy", caller.span]
    assert worker.name == "ml.TransformersService/GenerateEmbeddings"
    assert worker.attributes["rpc.grpc.status_code"] == 0
    assert not worker.failed
    # The request id, which all logs carry, is the same all the way too.
    assert len({s.attributes["request_id"] for s in spans if "request_id" in s.attributes}) == 1


def test_a_load_is_one_trace_through_the_control_plane(traced: Stack, sink: Sink) -> None:
    with traced.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        load(traced, Caller())
        stub.UnloadModel(models_pb.UnloadModelRequest(model_id=EMBEDDER))
    caller = Caller()
    load(traced, caller)
    spans = wait_for_spans(sink, caller, "envoy", "model_mgmt_svc", "text_svc")
    (worker,) = (span for span in spans if span.name == "ml.internal.ModelWorker/Load")
    assert ancestors(worker, spans) == ["model_mgmt_svc", "envoy", caller.span]


def test_a_failure_has_its_code_and_blames_the_server_for_its_own_alone(
    traced: Stack, sink: Sink
) -> None:
    caller = Caller()
    with pytest.raises(grpc.RpcError):
        embed(traced, caller, model="nobody/nothing")
    spans = wait_for_spans(sink, caller, "envoy", "text_svc")
    (text,) = (span for span in spans if span.service == "text_svc")
    expected = grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert text.attributes["rpc.grpc.status_code"] == expected
    assert not text.failed


def test_a_stream_of_frames_is_one_span(traced: Stack, sink: Sink) -> None:
    caller = Caller()
    frames = [
        vision_pb.VideoFrame(frame_data=bytes(64 * 64 * 3), format="rgb", width=64, height=64)
        for _ in range(3)
    ]
    with traced.channel() as channel:
        stub = vision_grpc.MediapipeServiceStub(channel)
        assert len(list(stub.StreamFaceDetection(iter(frames), metadata=caller.metadata))) == 3
    spans = wait_for_spans(sink, caller, "envoy", "vision_svc")
    (vision,) = (span for span in spans if span.service == "vision_svc")
    assert ancestors(vision, spans) == ["envoy", caller.span]


def test_a_caller_that_does_not_sample_is_left_alone(traced: Stack, sink: Sink) -> None:
    load(traced, Caller())
    quiet, loud = Caller(sampled=False), Caller()
    embed(traced, quiet)
    embed(traced, loud)
    wait_for_spans(sink, loud, "envoy", "text_svc", "text_svc.worker")
    assert not sink.spans(quiet.trace)


def test_the_access_log_names_the_trace(traced: Stack) -> None:
    caller = Caller()
    embed(traced, caller)

    def logged() -> bool:
        return any(line.get("trace_id") == caller.trace for line in traced.access_log())

    wait_for("a line of the access log", logged)


def test_without_a_collector_calls_are_served_and_the_stop_is_clean(
    private_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{free_port()}")
    stack = private_stack()
    stack.wait_listening()
    stack.wait_serving()
    load(stack, Caller())
    embed(stack, Caller())
    stack.process.terminate()
    assert stack.process.wait(60) == 0
    assert "killing" not in stack.output()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != ENDPOINT} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_off_nothing_of_opentelemetry_is_imported() -> None:
    done = run_python(
        "import sys, shared.rpc.server, shared.telemetry.tracing as t; t.configure('x');"
        "assert t.start_call('/a/b', {}) is None; t.end_call(None, 'OK');"
        "assert t.outgoing_metadata() == ();"
        "sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    assert done.returncode == 0, done.stderr


def test_asked_for_but_not_installed_is_told() -> None:
    done = run_python(
        "import sys; sys.modules['opentelemetry'] = None;"
        "from shared.telemetry import tracing; tracing.configure('x')",
        **{ENDPOINT: "http://127.0.0.1:4317"},
    )
    assert done.returncode == 1
    assert "ml-services[otel]" in done.stderr


@pytest.mark.parametrize("endpoint", ["https://127.0.0.1:4317", "127.0.0.1:4317"])
def test_the_stack_tells_an_endpoint_that_envoy_cannot_use(
    private_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv(ENDPOINT, endpoint)
    stack = private_stack()
    assert stack.process.wait(60) == 1
    assert "must be http://HOST:PORT" in stack.output()
