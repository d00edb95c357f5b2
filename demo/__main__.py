"""A demonstration of the main job, by commands that a person types: `python -m demo`.

Uses the stack that is running on the port, or starts one and stops it at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Column, Table

from demo import vision
from demo.commands import CommandError, Commands
from ml import transformers_pb2, transformers_pb2_grpc
from tools import litert_files
from tools.models import model_dir

CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
QUESTION = "What is the capital of France?"
SENTENCES = (
    "A man is eating food.",
    "Someone is having a meal.",
    "The rocket leaves the launch pad.",
)
PICTURE = "astronaut.png"
SERVICES = ("ml.ModelManagementService", "ml.TransformersService", "ml.MediapipeService")
START_SECONDS = 120
OUT = Path("out")
CHANNEL_OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]

console = Console()
Summary = list[tuple[str, str, float]]


@contextmanager
def running_stack(port: int) -> Iterator[str]:
    """The address of a stack on `port`: one that is already running, or one started here."""
    address = f"127.0.0.1:{port}"
    if _listens(address):
        console.print(f"using the stack that is running on port {port}")
        _wait_serving(address, None)
        yield address
        return
    console.print(f"starting the stack on port {port}")
    command = [sys.executable, "-m", "stack", "up", "--port", str(port)]
    # Only Envoy's port must be fixed. The stack ends even if this process is killed.
    command += ["--base-port", "auto", "--exit-with-parent", str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _wait_serving(address, process)
        yield address
    finally:
        process.terminate()
        process.communicate()


def _listens(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=1)
        except grpc.FutureTimeoutError:
            return False
        return True


def _wait_serving(address: str, process: subprocess.Popen[str] | None) -> None:
    """Waits until every service says SERVING through Envoy.

    Raises:
        SystemExit: the stack ended, or was not ready after START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(address) as channel, console.status("waiting for the services"):
        stub = health_pb2_grpc.HealthStub(channel)
        while missing := [name for name in SERVICES if not _serving(stub, name)]:
            if process and process.poll() is not None:
                output = process.communicate()[0]
                sys.exit(f"the stack did not start:\n{output}")
            if time.monotonic() > deadline:
                sys.exit(f"not serving after {START_SECONDS} s: {', '.join(missing)}")
            time.sleep(0.2)


def _serving(stub: Any, name: str) -> bool:
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=2)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Demo:
    """The steps; each prints its commands and results, and returns a sentence for the summary.

    Args:
        ml: runs a command.
        address: of Envoy, for what `ml` has no command for.
    """

    def __init__(self, ml: Commands, address: str) -> None:
        self._ml, self._address = ml, address

    def load(self, model: str, pipeline: str, **options: str) -> str:
        """Loads a model, following it until it is ready."""
        given = [f"--option={name}={value}" for name, value in options.items()]
        return self._ml.run("load", model, "--type", pipeline, *given).rpartition(", ")[2]

    def embed(self) -> str:
        """Embeds three sentences; prints how like the first one each is."""
        said = self._ml.run("embed", "-m", EMBEDDING_MODEL, *SENTENCES).splitlines()
        return f"{len(said) - 1} vectors, cosines {', '.join(row.split()[0] for row in said[1:])}"

    def tensors(self) -> str:
        """Runs a .tflite of MediaPipe's on a picture of nothing; its tensors in and out."""
        file = litert_files.segmenter()
        if file is None:
            return "off: `make models` could not fetch MediaPipe's selfie segmenter"
        model = litert_files.SEGMENTER
        self.load(model, "litert", file=file)
        described = transformers_pb2.InferRequest(
            model=model, tensors=transformers_pb2.Tensors(), options={"describe": "true"}
        )
        with grpc.insecure_channel(self._address, CHANNEL_OPTIONS) as channel:
            stub = transformers_pb2_grpc.TransformersServiceStub(channel)
            signature = stub.Infer(described).tensors.signatures[0]
            given = signature.inputs[0]
            given.data = bytes(4 * math.prod(given.shape))
            request = transformers_pb2.InferRequest(
                model=model, tensors=transformers_pb2.Tensors(tensors=[given])
            )
            start = time.perf_counter()
            output = stub.Infer(request).tensors.tensors[0]
            milliseconds = 1000 * (time.perf_counter() - start)
        self._ml.run("unload", model)
        shapes = f"{given.dtype} {list(given.shape)} to {output.dtype} {list(output.shape)}"
        return f"{shapes} in {milliseconds:.0f} ms"

    def chat_with_litert(self) -> str:
        """Chats with a .litertlm, if there is one."""
        file = litert_files.language_model()
        if file is None:
            return f"off: the variable {litert_files.VARIABLE} names no .litertlm file"
        memory = self.load(litert_files.LANGUAGE_MODEL, "text-generation", file=file)
        answer = self.chat(litert_files.LANGUAGE_MODEL)
        self._ml.run("unload", litert_files.LANGUAGE_MODEL)
        return f"{answer}, {memory}"

    def chat(self, model: str = CHAT_MODEL) -> str:
        """Streams an answer, printing it as it comes."""
        answer = self._ml.run("chat", "-m", model, "--temperature", "0", QUESTION)
        if "Paris" not in answer:
            sys.exit(f"the model's answer does not name Paris: {answer!r}")
        return repr(answer)

    def detect(self) -> str:
        """Finds the face in a picture and writes the picture with its box and points."""
        path, target = model_dir() / "pictures" / PICTURE, OUT / "faces.png"
        OUT.mkdir(exist_ok=True)
        found = self._ml.run("detect", "faces", str(path), "--out", str(target))
        return f"{found}, drawn in {target}"

    def loaded(self) -> str:
        """Prints the models in memory."""
        return f"{len(self._ml.run('models').splitlines()) - 1} models"

    def unload(self) -> str:
        self._ml.run("unload", CHAT_MODEL, EMBEDDING_MODEL)
        left = self._ml.run("models")
        return f"{len(left.splitlines())} lines of models left" if left else "no models left"


def vision_tasks(ml: Commands) -> str:
    """Runs every vision task on a clip and writes annotated clips and contact sheets."""
    table = Table("vision task", "frames", "with a result", "ms a frame", "written to")
    results = vision.run(ml, OUT)
    for r in results:
        written = f"{r.clip}, {r.sheet.name}"
        table.add_row(r.task, str(r.frames), str(r.found), f"{r.inference_ms:.1f}", written)
    console.print(table)
    if nothing := [r.task for r in results if not r.found]:
        sys.exit(f"nothing was found by {', '.join(nothing)}")
    return f"{len(results)} tasks, clips and sheets in {OUT}"


def run(address: str) -> Summary:
    """Runs all steps against a stack and returns (step, result, seconds) of each."""
    summary: Summary = []

    def step(name: str, action: Callable[[], str]) -> None:
        start = time.perf_counter()
        result = action()
        summary.append((name, result, time.perf_counter() - start))

    ml = Commands(address)
    demo = Demo(ml, address)
    step("load the chat model", lambda: demo.load(CHAT_MODEL, "text-generation"))
    step("load the embedding model", lambda: demo.load(EMBEDDING_MODEL, "feature-extraction"))
    step("embed", demo.embed)
    step("chat", demo.chat)
    step("a .tflite", demo.tensors)
    step("chat with a .litertlm", demo.chat_with_litert)
    step("detect faces", demo.detect)
    step("every vision task", lambda: vision_tasks(ml))
    step("list", demo.loaded)
    step("unload", demo.unload)
    return summary


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=50051, help="Envoy's port")
    parser.add_argument("--json", type=Path, help="also write the summary to this file")
    arguments = parser.parse_args()
    start = time.perf_counter()
    try:
        with running_stack(arguments.port) as address:
            started = time.perf_counter() - start
            summary: Summary = [("stack serving", address, started), *run(address)]
    except CommandError as error:
        sys.exit(f"a command failed with exit code {error.exit_code}")
    except grpc.RpcError as error:
        sys.exit(f"a call failed: {error.code().name}: {error.details()}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    table = Table(Column("step", no_wrap=True), Column("result", overflow="fold"), "seconds")
    for name, result, seconds in summary:
        table.add_row(name, result, f"{seconds:.2f}")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
