"""Whether there is a CUDA device, and what it holds."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import psutil
import torch

MIB = 1 << 20


def missing() -> str:
    """Why there is no CUDA device to test on; empty if there is one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is no CUDA build; `make test-cuda` installs one"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: this needs an NVIDIA GPU and its driver"
    return ""


def device_memory() -> dict[int, int]:
    """Bytes that each process holds on all devices, as the driver says."""
    query = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    held: dict[int, int] = {}
    for line in said.splitlines():
        pid, mib = map(int, line.split(","))
        held[pid] = held.get(pid, 0) + mib * MIB
    return held


def device_mib(pids: Sequence[int]) -> float:
    """MiB that some processes and their children hold on all devices."""
    family = set(pids)
    for pid in pids:
        family |= {each.pid for each in psutil.Process(pid).children(recursive=True)}
    return sum(held for pid, held in device_memory().items() if pid in family) / MIB
