"""How a child process of the front begins: with its limits, before it reads a byte of a model."""

from __future__ import annotations

import sys
from typing import TypeVar

from shared.process import die_with_parent
from shared.telemetry import logs
from text_svc.processes import memory, sandbox
from text_svc.processes.specs import ChildSpec

AnySpec = TypeVar("AnySpec", bound=ChildSpec)


def begin(kind: type[AnySpec], service: str) -> AnySpec:
    """Reads the start command and takes on the limits in it. Call it first in `main`.

    Args:
        kind: the class of the command.
        service: the name of the process in its log lines.
    """
    spec = kind.model_validate_json(sys.argv[1])
    die_with_parent(spec.parent_pid)
    memory.limit_this_process(spec.memory_bytes)
    spec.prepare()
    sandbox.enter(reads=spec.reads(), writes=spec.writes(), cuda=spec.cuda)
    logs.configure(f"{service} {spec.model_id}", spec.log_level, spec.log_style)
    return spec
