"""A model's process opens its own model's files alone, and reaches nobody."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest

from tests.support import tiny_text
from tests.support.attack import Attacks
from tests.support.sandboxed_child import TrialReport, TrialSpec
from tests.support.stack import Stack
from tests.support.text_service import READY, text_service
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.spawn import library_environment, spawn

MODEL = "tiny/llama"
ALLOWED = {
    "reads its model",
    "lists its model",
    "writes into its scratch folder",
    "starts a program",
}


@contextlib.contextmanager
def listeners() -> Iterator[tuple[int, str]]:
    """A port and the name of an abstract socket, which take connections."""
    name = f"test-{uuid.uuid4().hex}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{name}")
        unix.listen()
        yield tcp.getsockname()[1], name


def model_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


async def outcomes(folder: Path, sandbox: str, forks: ForkServer | None = None) -> dict[str, str]:
    """What a child's attempts come to."""
    with listeners() as (port, abstract):
        spec = TrialSpec(
            model_id="trial/model",
            scratch=folder / "scratch",
            sandbox=sandbox,  # type: ignore[arg-type]
            log_level="INFO",
            log_style="text",
            own=model_folder(folder, "trial--model"),
            other=model_folder(folder, "other--model"),
            home=Path.home(),
            port=port,
            abstract=abstract,
        )
        child = await spawn("tests.support.sandboxed_child", spec, threads=1, forks=forks)
        try:
            return (await child.report(TrialReport, "trying", 60)).outcomes
        finally:
            await child.end()


async def test_a_process_of_a_model_opens_nothing_else(
    attack: Attacks, stack: Stack, tmp_path: Path
) -> None:
    received = []
    signal.signal(signal.SIGURG, lambda *_: received.append(1))
    with attack("1 files of the machine", stack) as seen:
        free = await outcomes(tmp_path / "off", "off")
        held = await outcomes(tmp_path / "on", "required")
        async with aclosing(ForkServer(library_environment(1))) as forks:
            await forks.start(tmp_path / "forks")
            forked = await outcomes(tmp_path / "forked", "required", forks)
            assert forks.served == 1
        assert forked == held
        refused = {name for name, outcome in held.items() if outcome in ("EACCES", "EPERM")}
        assert {name for name, outcome in held.items() if outcome == "done"} == ALLOWED
        assert refused == held.keys() - ALLOWED
        seen.say(f"{len(refused)} of {len(refused)} ways out refused: {', '.join(sorted(refused))}")
    assert received == [1], "only the one without a sandbox could send a signal"
    # Without it they are possible, so it is the sandbox that refuses them.
    assert {name for name, outcome in free.items() if outcome != "done"} == set()


def test_the_processes_of_a_running_model_are_in_the_sandbox(stack: Stack) -> None:
    """All that the service has started, at any depth, cannot get privileges any more."""
    service = next(each for each in stack.processes() if each.cmdline()[1:] == ["-m", "text_svc"])
    started = service.children(recursive=True)
    assert started
    for process in started:
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status, process.cmdline()


async def test_a_model_whose_files_lie_elsewhere_cannot_be_loaded(tmp_path: Path) -> None:
    """A file of its converted folder is a link to one that is not its own."""
    models = tmp_path / "models"
    tiny_text.save_llama(models / MODEL)
    stolen = tmp_path / "stolen.json"

    async def load(sandbox: str) -> int:
        with text_service(models, tmp_path, {"TEXT_SANDBOX": sandbox}) as service:
            async with service.client() as client:
                _, model = await client.load(MODEL)
                if not stolen.exists():
                    await client.unload(MODEL)
                    (own,) = service.converted.glob("*/*/tokenizer.json")
                    own.rename(stolen)
                    own.symlink_to(stolen)
                    _, model = await client.load(MODEL)
                return model.state

    with pytest.raises(grpc.aio.AioRpcError, match="ermission denied") as caught:
        await load("required")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    log = await asyncio.to_thread((tmp_path / "text_svc.log").read_text)
    assert "models' processes are sandboxed" in log
    # It is nothing but the sandbox that refuses it.
    assert await load("off") == READY
