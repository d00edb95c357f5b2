"""Callers that ask for files and take nothing keep nobody from loading models, and are ended."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc
from tests.support.attack import Attacks
from tests.support.folders import MakeFolder
from tests.support.http2 import END_STREAM, SETTINGS, RawConnection
from tests.support.processes import rss_bytes
from tests.support.stack import EMBEDDER, Stack, stack_in, wait_for

STREAMS, READERS, READER_SECONDS = 8, 300, 3
FILE = pb.ModelFileRequest(model_id=EMBEDDER, file_path="model.safetensors")
NO_WINDOW = struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE
# A channel that adapts its window takes the whole file, on a busy machine, though nobody reads it.
ONE_WINDOW = (("grpc.http2.bdp_probe", 0),)
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def small(models: Path, module_folder: MakeFolder) -> Iterator[Stack]:
    """A stack with small limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_MGMT_MAX_FILE_STREAMS", str(STREAMS))
        for service in ("MODEL_MGMT", "TEXT", "VISION"):
            patch.setenv(f"{service}_READER_SECONDS", str(READER_SECONDS))
        with stack_in(module_folder("small")) as running:
            running.wait_serving()
            yield running


def test_readers_that_take_nothing(attack: Attacks, small: Stack) -> None:
    """Slow readers of files get a few streams at most, and LoadModel is served meanwhile."""
    before = rss_bytes(small.pids["model_mgmt_svc"])
    with (
        attack("4 slow readers", small) as seen,
        grpc.insecure_channel(small.addresses["envoy"], ONE_WINDOW) as channel,
    ):
        stub = pb_grpc.ModelManagementServiceStub(channel)
        calls = [stub.GetModelFile(FILE) for _ in range(READERS)]
        refused, held = [], []
        for call in calls:  # those that are refused end; the others have a first message
            try:
                next(call)
                held.append(call)
            except grpc.RpcError as error:
                refused.append((error.code(), error.details()))
        limit = f"{STREAMS} GetModelFile calls are running, and the limit is {STREAMS}"
        assert set(refused) == {(Code.RESOURCE_EXHAUSTED, limit)}
        assert len(held) + len(refused) == READERS
        load = pb.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
        assert stub.LoadModel(load, timeout=300).success
        seen.say(f"{len(refused)} of {READERS} refused: {limit}")
        seen.say("LoadModel served")

        def taken() -> bool:
            """Whether all streams are free again, without a reader having read or gone."""
            fresh = [stub.GetModelFile(FILE) for _ in range(STREAMS)]
            try:
                return all(next(each).total_size for each in fresh)
            except grpc.RpcError:
                return False
            finally:
                for each in fresh:
                    each.cancel()

        wait_for("the streams of those who take nothing", taken)
        ended = [end_of(call) for call in held]
        why = f"a response was not read within {READER_SECONDS} s"
        assert set(ended) == {(Code.DEADLINE_EXCEEDED, why)}
        seen.say(f"ended: {why}")
        stub.UnloadModel(pb.UnloadModelRequest(model_id=EMBEDDER), timeout=60)
    assert rss_bytes(small.pids["model_mgmt_svc"]) - before < 100 << 20


def end_of(call: Iterator[pb.ModelFileChunk]) -> tuple[grpc.StatusCode, str | None]:
    """Reads a stream to its end."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return error.code(), error.details()
    return Code.OK, None


def test_windows_that_stay_closed(attack: Attacks, small: Stack) -> None:
    """A caller whose window stays closed keeps no stream of a service, whatever it streams."""
    address = small.addresses["model_mgmt"]
    with attack("4 closed windows", small) as seen, ExitStack() as connections:
        for _ in range(5):
            connection = connections.enter_context(RawConnection(address))
            connection.send(SETTINGS, 0, 0, NO_WINDOW)
            for stream in range(1, 60, 2):
                connection.open_call(stream, "/ml.ModelManagementService/GetModelFile")
                connection.send_message(stream, FILE.SerializeToString(), flags=END_STREAM)
        with small.channel() as channel:
            stub = pb_grpc.ModelManagementServiceStub(channel)
            # The services' own streams are taken for now: a load waits for them.
            load = pb.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
            assert stub.LoadModel(load, timeout=300).success
            seen.say("150 streams with closed windows: LoadModel served")
