"""Steps of OpenVINO GenAI's continuous batching, in a process of its own.

A process of its own, since `step` of OpenVINO GenAI 2026.4 keeps Python's interpreter lock: in the
worker, nothing else would run meanwhile. Its one thread reads commands, steps, and writes what each
step made. All messages are JSON, one a line:

    in:  {"folder": …, "cache_blocks": …, "running": …, "precision": …, "threads": …}, once
         {"id": 1, "prompt": [ids], "config": {GenerationConfig's attributes}}
         {"cancel": 1}
    out: {"ready": true} or {"error": …}, once
         {"steps": [[id, [tokens], "stop" or "length" or null], …]}
         {"id": 1, "error": …}
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino
from openvino_genai import (
    ContinuousBatchingPipeline,
    GenerationConfig,
    GenerationFinishReason,
    GenerationStatus,
    SchedulerConfig,
)

from shared.process import die_with_parent

# Tokens that one step works on: a long prompt is cut, so that running answers do not wait for it.
STEP_TOKENS = 256
READ_BYTES = 1 << 20

_REASONS = {GenerationFinishReason.STOP: "stop", GenerationFinishReason.LENGTH: "length"}


def make_pipeline(
    folder: str, cache_blocks: int, running: int, precision: str, threads: int
) -> ContinuousBatchingPipeline:
    """A pipeline with prefix caching whose steps mix prompts and answers."""
    scheduler = SchedulerConfig()
    scheduler.num_kv_blocks = cache_blocks
    scheduler.max_num_seqs = running
    scheduler.max_num_batched_tokens = max(STEP_TOKENS, running)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    return ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)


class _Commands:
    """Lines of stdin: all that are there, or the next ones when there is nothing else to do."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False

    def read(self, wait: bool) -> Iterator[dict[str, Any]]:
        while select.select([0], [], [], None if wait else 0)[0]:
            block = os.read(0, READ_BYTES)
            if not block:
                self.ended = True
                return
            *lines, self._rest = (self._rest + block).split(b"\n")
            yield from map(json.loads, lines)
            wait = wait and not lines


class _Steps:
    """The pipeline and its running answers."""

    def __init__(self, pipeline: ContinuousBatchingPipeline, out: int) -> None:
        self._pipeline = pipeline
        self._out = out
        self._handles: dict[int, Any] = {}

    def serve(self) -> None:
        """Until stdin ends."""
        commands = _Commands()
        while not commands.ended:
            cancelled = False
            for command in commands.read(wait=not self._handles):
                if handle := self._handles.pop(command.get("cancel", 0), None):
                    handle.cancel()
                    cancelled = True
                elif "prompt" in command:
                    self._begin(command)
            if self._handles:
                self._pipeline.step()
                self._report()
            elif cancelled:
                self._pipeline.step()  # gives the blocks back
        for handle in self._handles.values():
            handle.cancel()
        self._pipeline.step()

    def _begin(self, command: dict[str, Any]) -> None:
        config = GenerationConfig()
        for name, value in command["config"].items():
            setattr(config, name, set(value) if isinstance(value, list) else value)
        prompt = openvino.Tensor(np.array([command["prompt"]], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(command["id"], prompt, config)
        except Exception as error:  # noqa: BLE001  # of this answer alone
            self.send({"id": command["id"], "error": str(error)})
        else:
            self._handles[command["id"]] = handle

    def _report(self) -> None:
        steps = []
        for number, handle in list(self._handles.items()):
            tokens: list[int] = []
            reason = None
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    reason = _REASONS.get(output.finish_reason)
            if reason:
                del self._handles[number]
            if tokens:
                steps.append((number, tokens, reason))
            elif handle.get_status() != GenerationStatus.RUNNING:  # it is out, and nothing says so
                del self._handles[number]
                self.send({"id": number, "error": "the cache has no room for it"})
        if steps:
            self.send({"steps": steps})

    def send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self._out, line) :]


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    die_with_parent(int(sys.argv[1]))
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not part of the conversation
    with os.fdopen(0, "rb", buffering=0, closefd=False) as unbuffered:
        setup = json.loads(unbuffered.readline())
    try:
        pipeline = make_pipeline(**setup)
    except Exception as error:  # noqa: BLE001  # the parent tells it
        os.write(out, json.dumps({"error": str(error)}).encode() + b"\n")
        sys.exit(1)
    steps = _Steps(pipeline, out)
    steps.send({"ready": True})
    steps.serve()


if __name__ == "__main__":
    main()
