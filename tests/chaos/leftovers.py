"""What a run must not leave over: processes, files, sockets and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.chaos.log import Log
from tests.chaos.models import WISHES
from tests.chaos.world import World
from text_svc.processes.scratch import FORK_SERVER, PREFIX

MIB = 1 << 20
# How much more a process may hold at the end than when all models had just been loaded. The
# allocators keep what a burst needed; what leaks with each fault is more than this in a long run.
GROWTH_MIB = {"text_svc": 96, "model_mgmt_svc": 96, "vision_svc": 400, "envoy": 96}
MORE_FILES = 32
"""File descriptors."""
SETTLE_SECONDS = 30.0


class Services:
    """Memory and open files of the services, as they were when all was well."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._before = {name: self._measure(name) for name in GROWTH_MIB}

    def _measure(self, name: str) -> tuple[int, int]:
        process = psutil.Process(self._world.pid(name))
        return process.memory_info().rss, process.num_fds()

    def grown(self) -> Iterator[str]:
        """What has grown too much."""
        for name, limit in GROWTH_MIB.items():
            (rss, files), (rss_now, files_now) = self._before[name], self._measure(name)
            if rss_now > rss + limit * MIB:
                yield f"{name} holds {rss_now // MIB} MiB, {rss // MIB} MiB at the start"
            if files_now > files + MORE_FILES:
                yield f"{name} has {files_now} files open, {files} at the start"

    def sizes(self) -> dict[str, int]:
        """MiB now."""
        return {name: self._measure(name)[0] // MIB for name in GROWTH_MIB}


def look(world: World, log: Log, services: Services, bound: float) -> None:
    """Writes down what is left over, once nobody calls; what goes within the time is not."""
    give_up = time.monotonic() + max(bound, SETTLE_SECONDS)
    while (found := [*_found(world), *services.grown()]) and time.monotonic() < give_up:
        time.sleep(0.5)
    for thing in found:
        log.add("leftover", thing=thing)
    log.add("memory", sizes=services.sizes())


def _found(world: World) -> Iterator[str]:
    yield from _processes(world)
    yield from _files(world)


def _processes(world: World) -> Iterator[str]:
    """Processes of models that nobody wants, and those that belong to nobody."""
    owned = {world.stack.process.pid}
    for name, pid in world.stack.pids.items():
        owned.add(pid)
        if name == "text_svc":
            owned |= {each.pid for each in world.children("fork_server_process")}
            for wish in WISHES:
                for worker in world.model_process(wish.model_id):
                    owned |= {worker.pid, *(child.pid for child in worker.children(recursive=True))}
    for process in world.stack.processes():
        with contextlib.suppress(psutil.Error):
            if process.pid not in owned:
                yield f"process {process.pid} {' '.join(process.cmdline())[:120]}"


def _files(world: World) -> Iterator[str]:
    cache = world.inside("cache")
    for pattern in ("*/.fetch/*.part*", "*/.fetch/*.tmp", "**/.part-*", "**/*.tmp"):
        for path in cache.glob(pattern):
            yield f"file {path.relative_to(cache)}"
    for path in world.inside("state").glob("*.tmp"):
        yield f"file {path.name}"
    yield from in_scratch(world.scratch)


def in_scratch(scratch: Path) -> Iterator[str]:
    """What is there beside one folder of text_svc, and in it one for each model that is loaded.

    And one of the fork server.
    """
    folders = [each for each in scratch.iterdir() if each.name.startswith(PREFIX)]
    if len(folders) > 1:
        yield f"{len(folders)} folders of text_svc, of which one is in use"
    inside = [each for folder in folders for each in folder.iterdir() if each.is_dir()]
    inside = [each for each in inside if each.name != FORK_SERVER]
    if len(inside) > len(WISHES) and len(folders) <= 1:
        yield f"{len(inside)} folders of models, {len(WISHES)} are loaded"
    for path in scratch.iterdir():
        if not path.name.startswith(PREFIX):
            yield f"file {path.name}"
    sockets = [path for path in scratch.rglob("*") if path.is_socket()]
    if len(sockets) > len(WISHES):
        yield f"{len(sockets)} sockets, {len(WISHES)} are in use"
