"""A demonstration of the main job, through Envoy: `python -m demo`.

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
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn
from rich.table import Column, Table

from demo import vision as demo_vision
from ml import (
    common_pb2,
    mediapipe_pb2,
    mediapipe_pb2_grpc,
    model_management_pb2,
    model_management_pb2_grpc,
    transformers_pb2,
    transformers_pb2_grpc,
)
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


@contextmanager
def load_progress(model: str) -> Iterator[Callable[[model_management_pb2.ModelStatus], None]]:
    """A line that says how far a load has come, with a bar of its files, or of its weights."""
    columns = (SpinnerColumn(), "{task.description}", BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{model}: pending", total=None)

        def show(status: model_management_pb2.ModelStatus) -> None:
            state = model_management_pb2.ModelState.Name(status.state)
            word = state.removeprefix("MODEL_STATE_").lower()
            done: float = status.bytes_fetched
            if status.HasField("load_share"):
                done = status.load_share * status.bytes_total
            progress.update(
                task,
                description=f"{model}: {word}",
                completed=done,
                total=status.bytes_total or None,
            )

        yield show


class Demo:
    """The steps; each prints its results and returns a sentence for the summary."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._manage = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        self._text = transformers_pb2_grpc.TransformersServiceStub(channel)
        self._vision = mediapipe_pb2_grpc.MediapipeServiceStub(channel)

    def load(self, model: str, pipeline: str, **options: str) -> str:
        """Begins a load and follows it until the model is ready."""
        request = model_management_pb2.LoadModelRequest(
            model_id=model, pipeline_type=pipeline, options=options, wait=False
        )
        self._manage.LoadModel(request)
        with load_progress(model) as show:
            for change in self._manage.WatchModels(model_management_pb2.WatchModelsRequest()):
                for status in (each for each in change.models if each.model_id == model):
                    show(status)
                    if status.state == model_management_pb2.MODEL_STATE_READY:
                        return f"{math.ceil(status.ram_bytes / (1 << 20))} MiB"
                    if status.state == model_management_pb2.MODEL_STATE_FAILED:
                        sys.exit(f"{model} was not loaded: {status.reason}")
        sys.exit(f"{model} was not loaded: the watch has ended")

    def embed(self) -> str:
        """Embeds three sentences and prints their cosine similarities."""
        answer = self._text.GenerateEmbeddings(
            transformers_pb2.GenerateEmbeddingsRequest(texts=SENTENCES, model=EMBEDDING_MODEL)
        )
        vectors = [list(e.values) for e in answer.embeddings]
        table = Table("cosine similarity", *(str(i + 1) for i in range(len(vectors))))
        for number, (sentence, row) in enumerate(zip(SENTENCES, vectors, strict=True), 1):
            table.add_row(f"{number} {sentence}", *(f"{_cosine(row, v):.3f}" for v in vectors))
        console.print(table)
        return f"{len(vectors)} vectors of {len(vectors[0])}"

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
        signature = self._text.Infer(described).tensors.signatures[0]
        given = signature.inputs[0]
        given.data = bytes(4 * math.prod(given.shape))
        request = transformers_pb2.InferRequest(
            model=model, tensors=transformers_pb2.Tensors(tensors=[given])
        )
        start = time.perf_counter()
        output = self._text.Infer(request).tensors.tensors[0]
        milliseconds = 1000 * (time.perf_counter() - start)
        self._manage.UnloadModel(model_management_pb2.UnloadModelRequest(model_id=model))
        shapes = f"{given.dtype} {list(given.shape)} to {output.dtype} {list(output.shape)}"
        return f"{shapes} in {milliseconds:.0f} ms"

    def chat_with_litert(self) -> str:
        """Chats with a .litertlm, if there is one."""
        file = litert_files.language_model()
        if file is None:
            return f"off: the variable {litert_files.VARIABLE} names no .litertlm file"
        memory = self.load(litert_files.LANGUAGE_MODEL, "text-generation", file=file)
        answer = self.chat(litert_files.LANGUAGE_MODEL)
        unload = model_management_pb2.UnloadModelRequest(model_id=litert_files.LANGUAGE_MODEL)
        self._manage.UnloadModel(unload)
        return f"{answer}, {memory}"

    def chat(self, model: str = CHAT_MODEL) -> str:
        """Streams an answer, printing it as it comes."""
        console.print(f"[bold]user[/]       {QUESTION}\n[bold]assistant[/]  ", end="")
        words, reason = [], ""
        for message in self._text.ChatCompletion(
            transformers_pb2.ChatRequest(
                model=model,
                messages=[transformers_pb2.ChatMessage(role="user", content=QUESTION)],
                temperature=0,
            )
        ):
            console.print(message.content, end="", markup=False, highlight=False)
            words.append(message.content)
            reason = message.finish_reason or reason
        console.print()
        answer = "".join(words)
        if "Paris" not in answer:
            sys.exit(f"the model's answer does not name Paris: {answer!r}")
        return f"{answer!r} ({reason})"

    def detect(self) -> str:
        """Finds the face in a picture and writes the picture with its box and points."""
        path = model_dir() / "pictures" / PICTURE
        answer = self._vision.DetectFaces(
            mediapipe_pb2.ImageRequest(image_data=path.read_bytes(), format="png")
        )
        OUT.mkdir(exist_ok=True)
        target = OUT / "faces.png"
        _draw_faces(path, answer.faces).save(target)
        scores = ", ".join(f"{face.confidence:.2f}" for face in answer.faces)
        return f"{len(answer.faces)} face (confidence {scores}), drawn in {target}"

    def loaded(self) -> str:
        """Prints the loaded models."""
        models = self._manage.GetLoadedModels(common_pb2.EmptyRequest()).models
        table = Table(Column("loaded model", no_wrap=True), "pipeline", "RAM MiB", "VRAM MiB")
        for m in models:
            table.add_row(m.model_id, m.pipeline_type, str(m.ram_mb), str(m.vram_mb))
        console.print(table)
        return f"{len(models)} models, {sum(m.ram_mb for m in models)} MiB"

    def unload(self) -> str:
        for model in (CHAT_MODEL, EMBEDDING_MODEL):
            self._manage.UnloadModel(model_management_pb2.UnloadModelRequest(model_id=model))
        left = self._manage.GetLoadedModels(common_pb2.EmptyRequest()).models
        return f"{len(left)} models left"


def vision_tasks(address: str) -> str:
    """Runs every vision task on a clip and writes annotated clips and contact sheets."""
    table = Table("vision task", "frames", "with a result", "ms a frame", "written to")
    said: list[str] = []
    with console.status("running every vision task"):
        results = demo_vision.run(address, OUT, said.append)
    for line in said:
        if ": off: " in line:
            console.print(line)
    for r in results:
        written = f"{r.clip}, {r.sheet.name}"
        table.add_row(r.task, str(r.frames), str(r.found), f"{r.inference_ms:.1f}", written)
    console.print(table)
    if nothing := [r.task for r in results if not r.found]:
        sys.exit(f"nothing was found by {', '.join(nothing)}")
    return f"{len(results)} tasks, clips and sheets in {OUT}"


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def _draw_faces(path: Path, faces: Any) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    for face in faces:
        left, top = face.x * width, face.y * height
        right, bottom = left + face.width * width, top + face.height * height
        draw.rectangle((left, top, right, bottom), outline="lime", width=3)
        draw.text((left, max(0, top - 14)), f"face {face.confidence:.2f}", fill="lime")
        for point in face.keypoints:
            x, y = point.x * width, point.y * height
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="red")
    return picture


def run(address: str) -> Summary:
    """Runs all steps against a stack and returns (step, result, seconds) of each."""
    summary: Summary = []

    def step(name: str, action: Callable[[], str]) -> None:
        start = time.perf_counter()
        result = action()
        summary.append((name, result, time.perf_counter() - start))

    options = [("grpc.max_receive_message_length", 64 << 20)]
    with grpc.insecure_channel(address, options=options) as channel:
        demo = Demo(channel)
        step("load the chat model", lambda: demo.load(CHAT_MODEL, "text-generation"))
        step("load the embedding model", lambda: demo.load(EMBEDDING_MODEL, "feature-extraction"))
        step("embed", demo.embed)
        step("chat", demo.chat)
        step("a .tflite", demo.tensors)
        step("chat with a .litertlm", demo.chat_with_litert)
        step("detect faces", demo.detect)
        step("every vision task", lambda: vision_tasks(address))
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
