"""What a benchmark ran on, and whether the machine did anything else meanwhile."""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.stack import ROOT

# Of the cores that the machine names, a quiet one gives at least this share.
QUIET_SHARE = 0.95
# Of the cores, what other processes may use while a benchmark runs.
OTHERS_SHARE = 0.05
# Marks a table in spite of that.
BUSY = "Taken on a busy machine"
# What figures depend on most.
PACKAGES = (
    *("openvino", "openvino-genai", "torch", "transformers", "sentence-transformers"),
    *("mediapipe", "ai-edge-litert", "litert-lm-api", "grpcio", "protobuf"),
)


def named_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def effective_cores(seconds: float = 1.0) -> float:
    """How many cores the machine really gives, in units of what one gives to a process alone."""
    named = named_cores()
    context = multiprocessing.get_context("spawn")
    with context.Pool(named) as pool:
        pool.starmap(_count, [(0.05, time.monotonic())] * named)
        (alone,) = pool.starmap(_count, [(seconds, time.monotonic() + 0.1)])
        together = pool.starmap(_count, [(seconds, time.monotonic() + 0.1)] * named, chunksize=1)
        (again,) = pool.starmap(_count, [(seconds, time.monotonic() + 0.1)])
    return sum(together) / max(alone, again)


def _count(seconds: float, start: float) -> int:
    """Rounds of fixed work within `seconds` from `start` on."""
    while time.monotonic() < start:
        pass
    rounds = 0
    while time.monotonic() < start + seconds:
        sum(range(2000))
        rounds += 1
    return rounds


def describe() -> str:
    """CPU, cores, memory, system, versions and commit, in a line."""
    memory = psutil.virtual_memory().total / (1 << 30)
    versions = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return (
        f"{_cpu()}{_gpus()}, {named_cores()} cores, {memory:.0f} GiB; {platform.system()} "
        f"{platform.release()}, {', '.join(versions)}, commit {_commit()}"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> str:
    """Each NVIDIA card, as its driver calls it."""
    told = Path("/proc/driver/nvidia/gpus").glob("*/information")
    names = [path.read_text().partition("Model:")[2].splitlines()[0].strip() for path in told]
    return "".join(f", {name}" for name in names)


def _commit() -> str:
    command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*")
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


@dataclass
class Machine:
    """The machine while a benchmark runs.

    Attributes:
        described: CPU, cores, memory, versions and commit.
        cores: that it names.
        effective: cores that it really gave, before and after; empty where it does not matter.
        load: the load average of the minute before.
        others: cores that other processes used meanwhile; this benchmark's are all those that it
            has started and waited for.
    """

    described: str = field(default_factory=describe)
    cores: int = field(default_factory=named_cores)
    effective: list[float] = field(default_factory=list)
    load: float = 0.0
    others: float = 0.0

    def busy(self) -> list[str]:
        """What was seen that a quiet machine does not show."""
        least, most = QUIET_SHARE * self.cores, OTHERS_SHARE * self.cores
        seen = [
            f"{given:.2f} effective cores {when}, fewer than {least:.2f} of {self.cores}"
            for when, given in zip(("before", "after"), self.effective, strict=False)
            if given < least
        ]
        if self.others > most:
            seen.append(f"other processes used {self.others:.2f} cores, more than {most:.2f}")
        return seen

    def heading(self) -> str:
        """What stands above a table: the machine, and what it gave."""
        told = [f"Measured on {self.described}."]
        if self.effective:
            before, after = self.effective
            told += [
                f"Effective cores {before:.2f} before, {after:.2f} after, of {self.cores};",
                f"load {self.load:.1f} before;",
                f"other processes used {max(0.0, self.others):.2f} cores.",
            ]
        if seen := self.busy():
            told.append(f"**{BUSY}**: {'; '.join(seen)}.")
        return " ".join(told)


@contextlib.contextmanager
def quiet_machine(*, busy: bool = False) -> Iterator[Machine]:
    """The machine, looked at before and after what is measured.

    Args:
        busy: measure on a busy machine too; its heading says that it was.

    Raises:
        SystemExit: the machine is not quiet, or was not until the end; the message is what was
            seen.
    """
    machine = Machine(load=os.getloadavg()[0])
    machine.effective.append(effective_cores())
    _refuse(machine, busy)
    start, used = time.monotonic(), _used_by_others()
    yield machine
    machine.others = (_used_by_others() - used) / (time.monotonic() - start)
    machine.effective.append(effective_cores())
    _refuse(machine, busy)


def _refuse(machine: Machine, busy: bool) -> None:
    if machine.busy() and not busy:
        sys.exit(
            f"The machine is not quiet: {'; '.join(machine.busy())}. The load average is "
            f"{os.getloadavg()[0]:.1f}. Stop what else runs, or measure with --busy, "
            "which marks the table."
        )


def _used_by_others() -> float:
    """CPU seconds so far of all processes but this one and those it has waited for."""
    everything = psutil.cpu_times()
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (
        sum(everything[:3])  # user, nice, system
        + everything.steal
        - sum(each.ru_utime + each.ru_stime for each in own)
    )
