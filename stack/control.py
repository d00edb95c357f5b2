"""The state file of a running stack, and the commands that use it: status and down."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stack.child import Child
    from stack.layout import Layout

# More than the runner's own limit.
DOWN_SECONDS = 15.0


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is no such process.

    Pids are reused; a pid together with this number identifies one process. Without /proc, as on
    macOS, it is hundredths of a second since the epoch.
    """
    if sys.platform != "linux":
        return _start_time(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return None if fields[0] == "Z" else int(fields[19])


def _start_time(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(process.create_time() * 100)
    except psutil.Error:
        return None


def write(layout: Layout, children: list[Child], guard_pid: int) -> None:
    """Writes pids, addresses and folders as JSON, atomically."""
    pids = {"guard": guard_pid, "runner": os.getpid()}
    pids |= {child.spec.name: child.pid for child in children if child.pid is not None}
    state = {
        "pid": guard_pid,
        "start_ticks": start_ticks(guard_pid),
        "addresses": layout.addresses(),
        "pids": pids,
        "states": {child.spec.name: child.state for child in children},
        "logs": str(layout.logs),
        "models": str(layout.models),
        "run_dir": str(layout.run_dir),
    }
    part = layout.state_file.with_name(f"{layout.state_file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(state, indent=1) + "\n")
    part.replace(layout.state_file)


def find(state_file: Path) -> dict[str, Any] | None:
    """The state of the running stack, or None when there is none.

    The pid must have the start time in the file, so that another process with a reused pid is never
    mistaken for the stack.
    """
    try:
        if not state_file.is_file():  # reading a pipe would wait for ever
            return None
        state: dict[str, Any] = json.loads(state_file.read_text())
        ticks = start_ticks(int(state["pid"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return state if ticks is not None and ticks == state.get("start_ticks") else None


def status(state_file: Path) -> int:
    """Prints a line for each process; returns 1 when no stack is running."""
    state = find(state_file)
    if state is None:
        sys.stdout.write("no stack is running\n")
        return 1
    addresses, pids = state["addresses"], state["pids"]
    for name, condition in state["states"].items():
        address = addresses.get(name.removesuffix("_svc"), "")
        pid = f", pid {pids[name]}" if name in pids else ""
        sys.stdout.write(f"{name:<14} {condition:<11} {address}{pid}\n")
    sys.stdout.write(f"logs are in {state['logs']}\n")
    return 0


def down(state_file: Path) -> int:
    """Stops the stack and waits until it has ended; returns 1 when it had to be killed."""
    state = find(state_file)
    if state is None:
        sys.stdout.write("no stack is running\n")
        return 0
    pid = int(state["pid"])
    os.kill(pid, signal.SIGTERM)
    give_up = time.monotonic() + DOWN_SECONDS
    while find(state_file):
        if time.monotonic() > give_up:
            os.kill(pid, signal.SIGKILL)  # the runner kills the rest
            sys.stdout.write(f"the stack did not stop within {DOWN_SECONDS:g} s: killed\n")
            return 1
        time.sleep(0.05)
    sys.stdout.write("the stack has stopped\n")
    return 0
