"""What an attack does to everybody else: `python -m tests.support.observer`, beside the attack.

A process of its own, so that a test that works hard slows down neither the samples nor the
bystander. It reads an `Order` from the first line of its input, says `ready` once the bystander has
been served, and at the end of its input prints what it saw as JSON.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import grpc
import psutil
from pydantic import BaseModel

from ml import (
    common_pb2,
    mediapipe_pb2,
    mediapipe_pb2_grpc,
    model_management_pb2_grpc,
    transformers_pb2,
    transformers_pb2_grpc,
)
from tests.support import stack as stacks

SAMPLE_SECONDS = 0.1
# Looking for new processes reads the environment of every process of the machine.
SEARCH_SECONDS = 1.0
# Often enough to be there at the worst moment, seldom enough to cost next to nothing.
PAUSE_SECONDS = 0.25
# Ends a call that hangs, as a failure.
CALL_SECONDS = 120.0
# Processes that free memory after an attack get this long before they are measured.
SETTLE_SECONDS = 0.5


class Order(BaseModel):
    """What to watch.

    Attributes:
        mark: of a stack whose processes are watched.
        state_file: of that stack, for the names of its processes.
        pids: of more processes, which are watched with all that they start.
        address: where the bystander calls; nowhere if empty.
        calls: the bystander's calls, keys of `CALLS`.
        metadata: sent with each of them.
    """

    mark: str = ""
    state_file: Path | None = None
    pids: list[int] = []
    address: str = ""
    calls: list[str] = []
    metadata: list[tuple[str, str]] = []


class Memory(BaseModel):
    """The resident memory of a process, in bytes.

    Attributes:
        name: of the service, or of the module that a process runs.
        before: at the start of the attack; 0 if the process was started later.
        worst: the largest.
        after: at the end; 0 if the process has ended.
    """

    name: str
    before: int
    worst: int
    after: int


class Calls(BaseModel):
    """What a bystander got from one kind of call.

    Attributes:
        count: of the calls that were answered.
        worst_seconds: of the slowest call, answered or not.
        failures: status and message of each call that failed.
    """

    count: int = 0
    worst_seconds: float = 0.0
    failures: list[str] = []


class Report(BaseModel):
    """What was seen.

    Attributes:
        memory: by pid.
        calls: of the bystander, by kind.
    """

    memory: dict[int, Memory]
    calls: dict[str, Calls]


def _models(channel: grpc.Channel, metadata: Sequence[tuple[str, str]]) -> None:
    stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
    stub.GetLoadedModels(common_pb2.EmptyRequest(), timeout=CALL_SECONDS, metadata=metadata)


def _embedding(channel: grpc.Channel, metadata: Sequence[tuple[str, str]]) -> None:
    stub = transformers_pb2_grpc.TransformersServiceStub(channel)
    request = transformers_pb2.GenerateEmbeddingsRequest(texts=["a ship"], model=stacks.EMBEDDER)
    answer = stub.GenerateEmbeddings(request, timeout=CALL_SECONDS, metadata=metadata)
    assert len(answer.embeddings) == 1


def _small_picture() -> bytes:
    image = cv2.imread(str(stacks.MODELS / "pictures" / "astronaut.png"))
    assert image is not None
    return bytes(cv2.imencode(".jpg", cv2.resize(image, (128, 128)))[1])


def _faces() -> Callable[[grpc.Channel, Sequence[tuple[str, str]]], None]:
    request = mediapipe_pb2.ImageRequest(image_data=_small_picture(), format="jpeg")

    def call(channel: grpc.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        stub.DetectFaces(request, timeout=CALL_SECONDS, metadata=metadata)

    return call


# Makers of the calls, by the name that a test gives.
CALLS: dict[str, Callable[[], Callable[[grpc.Channel, Sequence[tuple[str, str]]], None]]] = {
    "models": lambda: _models,
    "embedding": lambda: _embedding,
    "faces": _faces,
}


class Bystander:
    """Makes one kind of call all the time, as a caller of its own.

    Attributes:
        calls: what it got so far.
        served: set once a call has ended.
    """

    def __init__(self, kind: str, order: Order) -> None:
        self.calls = Calls()
        self.served = threading.Event()
        self._call = CALLS[kind]()
        self._order = order
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with stacks.open_channel(self._order.address) as channel:
            while not self._stopped.is_set():
                start = time.monotonic()
                try:
                    self._call(channel, self._order.metadata)
                    self.calls.count += 1
                except grpc.RpcError as error:
                    self.calls.failures.append(f"{error.code().name}: {error.details()}")
                taken = time.monotonic() - start
                # The first call also connects and warms up.
                if self.served.is_set():
                    self.calls.worst_seconds = max(self.calls.worst_seconds, taken)
                self.served.set()
                self._stopped.wait(PAUSE_SECONDS)

    def stop(self) -> Calls:
        """Waits for the call under way."""
        self._stopped.set()
        self._thread.join()
        return self.calls


class Sampler:
    """Samples the memory of processes in a thread."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._memory: dict[int, Memory] = {}
        self._processes: dict[int, psutil.Process] = {}
        self._stopped = threading.Event()
        self._search()
        self._sample()
        for each in self._memory.values():
            each.before = each.worst
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _found(self) -> Iterator[psutil.Process]:
        if self._order.mark:
            yield from stacks.marked_processes(self._order.mark)
        for pid in self._order.pids:
            try:
                parent = psutil.Process(pid)
                yield from (parent, *parent.children(recursive=True))
            except psutil.NoSuchProcess:
                pass

    def _search(self) -> None:
        names = {}
        if self._order.state_file is not None and self._order.state_file.exists():
            state = stacks.read_state(self._order.state_file)
            names = {pid: name for name, pid in state["pids"].items()}
        for process in self._found():
            if process.pid in self._processes:
                continue
            try:
                name = names.get(process.pid) or _name(process)
            except psutil.Error:
                continue
            self._processes[process.pid] = process
            self._memory[process.pid] = Memory(name=name, before=0, worst=0, after=0)

    def _sample(self) -> None:
        for pid, process in self._processes.items():
            memory = self._memory[pid]
            try:
                memory.after = process.memory_info().rss if process.is_running() else 0
            except psutil.Error:
                memory.after = 0
            memory.worst = max(memory.worst, memory.after)

    def _run(self) -> None:
        searched = time.monotonic()
        while not self._stopped.wait(SAMPLE_SECONDS):
            if time.monotonic() > searched + SEARCH_SECONDS:
                self._search()
                searched = time.monotonic()
            self._sample()

    def stop(self) -> dict[int, Memory]:
        """Samples a last time."""
        time.sleep(SETTLE_SECONDS)
        self._stopped.set()
        self._thread.join()
        self._sample()
        return self._memory


def _name(process: psutil.Process) -> str:
    """The module that a process runs, or its program."""
    words = process.cmdline()
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return process.name()


def main() -> None:
    """Entry point."""
    order = Order.model_validate_json(sys.stdin.readline())
    bystanders = {kind: Bystander(kind, order) for kind in order.calls}
    for each in bystanders.values():
        each.served.wait()
    sampler = Sampler(order)
    print("ready", flush=True)
    sys.stdin.read()
    calls = {kind: each.stop() for kind, each in bystanders.items()}
    print(Report(memory=sampler.stop(), calls=calls).model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
