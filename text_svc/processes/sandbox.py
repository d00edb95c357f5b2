"""What a child process may open: its model's folders, a scratch folder, and what Python needs.

A model's files come from strangers, and the libraries that read them are large. Whatever a file
makes a library do, the kernel lets its process open nothing else: no other model, no file of the
machine, no network. The kernel's means is Landlock; where it has none, `MODE_VARIABLE` says whether
text_svc starts all the same.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import ml
import shared
from shared import landlock
from shared.telemetry import tracing

log = logging.getLogger(__name__)

SandboxMode = Literal["auto", "required", "off"]
# A setting of text_svc, and how a child and the processes that it starts know of it.
MODE_VARIABLE = "TEXT_SANDBOX"

# The interpreter, its packages and our code: these folders alone, since caches may lie beside them.
_PYTHON = (
    *(Path(folder) for folder in (sys.prefix, sys.exec_prefix, sys.base_prefix)),
    *(Path(package.__path__[0]) for package in (ml, shared)),
    Path(__file__).parents[1],
)
# Shared libraries and what they read when they are loaded, on each kind of Linux.
_LIBRARIES = tuple(map(Path, ("/usr", "/lib", "/lib64", "/nix/store")))
_READABLE = tuple(
    map(
        Path,
        (
            "/etc/ld.so.cache",  # where the shared libraries are
            "/etc/localtime",  # chat templates write the date
            "/dev/urandom",
            "/dev/zero",
            "/proc/cpuinfo",  # OpenVINO, torch: what the processor can do
            "/proc/meminfo",
            "/sys/devices/system/cpu",  # OpenVINO, glibc: cores and caches
            "/sys/devices/system/node",
        ),
    )
)
# NVIDIA's driver: its devices, and what it reads of them and of the process.
_CUDA_DEVICES = "nvidia*"
_CUDA = tuple(
    map(
        Path,
        (
            *("/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/proc/self"),
            *("/proc/sys/vm/mmap_min_addr", "/sys/bus/pci", "/sys/devices", "/sys/module/nvidia"),
            "/sys/module/nvidia_uvm",
        ),
    )
)
# The resolver's, for the name of a collector of traces.
_NAMES = tuple(map(Path, ("/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf")))


def check(mode: SandboxMode) -> None:
    """Logs at the start of text_svc what the kernel can restrict.

    Raises:
        SystemExit: it can restrict nothing, and `mode` is "required".
    """
    kernel = landlock.support()
    if mode == "off":
        log.warning("models' processes are not sandboxed", extra={"why": f"{MODE_VARIABLE}=off"})
    elif kernel.abi:
        log.info(
            "models' processes are sandboxed",
            extra={
                "landlock": kernel.abi,
                "files": kernel.files,
                "tcp": kernel.tcp,
                "signals": kernel.signals,
            },
        )
    elif mode == "required":
        sys.exit(f"{MODE_VARIABLE}=required, but the kernel has no Landlock: {kernel.obstacle}")
    else:
        log.warning(
            "models' processes are not sandboxed",
            extra={"why": f"the kernel has no Landlock: {kernel.obstacle}"},
        )


def enter(*, reads: Iterable[Path] = (), writes: Iterable[Path] = (), cuda: bool = False) -> None:
    """Restricts this process, and all that it starts, for good; call it before threads start.

    Called again, in a process that a restricted one has started, it takes away what is not given
    again.

    Args:
        reads: folders that it reads.
        writes: folders in which it makes, writes and removes files.
        cuda: whether it uses NVIDIA's driver.

    Raises:
        OSError: the kernel cannot, and the mode is "required".
        RuntimeError: there are other threads, which would not be restricted.
    """
    mode = os.environ.get(MODE_VARIABLE, "auto")
    if mode == "off" or (mode == "auto" and not landlock.support().abi):
        return
    port = tracing.collector_port()
    landlock.restrict(
        {
            **dict.fromkeys((*_PYTHON, *_LIBRARIES), landlock.RUN),
            **dict.fromkeys(_READABLE, landlock.READ),
            **dict.fromkeys(_NAMES if port else (), landlock.READ),
            **dict.fromkeys(_CUDA if cuda else (), landlock.READ),
            **dict.fromkeys(Path("/dev").glob(_CUDA_DEVICES) if cuda else (), landlock.DEVICE),
            Path("/dev/null"): landlock.DEVICE,
            **dict.fromkeys(reads, landlock.READ),
            **dict.fromkeys(writes, landlock.WRITE),
        },
        connect_ports=(port,) if port else (),
    )
