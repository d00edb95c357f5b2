"""The child process of `openvino_stepper`: reads commands, steps, and writes what each step made.

All messages are JSON, one per line:

    in:  {"folder": …, "cache_blocks": …, "running": …, "precision": …, "threads": …}, once
         {"id": 1, "prompt": [ids], "config": {GenerationConfig's attributes}}
         {"cancel": 1}
    out: {"ready": true} or {"error": …}, once
         {"steps": [[id, [tokens], "stop" or "length" or null], …]}, after each step; empty after
             one that only read a piece of a prompt
         {"id": 1, "error": …}
"""

from __future__ import annotations

import sys
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
from text_svc.link.json_lines import BlockingJsonLines
from text_svc.processes.tracebacks import write_tracebacks_on_signal

# Tokens of a step. A long prompt is read in pieces, so that running generations do not wait.
STEP_TOKENS = 256

_REASONS = {GenerationFinishReason.STOP: "stop", GenerationFinishReason.LENGTH: "length"}


def make_pipeline(
    folder: str, cache_blocks: int, running: int, precision: str, threads: int
) -> ContinuousBatchingPipeline:
    """A pipeline with prefix caching, whose steps mix prompts and generated tokens."""
    scheduler = SchedulerConfig()
    scheduler.num_kv_blocks = cache_blocks
    scheduler.max_num_seqs = running
    scheduler.max_num_batched_tokens = max(STEP_TOKENS, running)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    return ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)


class _Steps:
    """The pipeline and its running generations."""

    def __init__(self, pipeline: ContinuousBatchingPipeline, lines: BlockingJsonLines) -> None:
        self._pipeline = pipeline
        self._lines = lines
        self._handles: dict[int, Any] = {}

    def serve(self) -> None:
        """Runs until stdin ends."""
        while not self._lines.ended:
            cancelled, wait = False, not self._handles
            while (command := self._lines.receive(wait=wait)) is not None:
                wait = False
                if handle := self._handles.pop(command.get("cancel", 0), None):
                    handle.cancel()
                    cancelled = True
                elif "prompt" in command:
                    if cancelled:
                        # Only a step frees the blocks of cancelled generations. In a full cache,
                        # the pipeline would drop all new ones in the same step.
                        self._step()
                        cancelled = False
                    self._begin(command)
            if self._handles or cancelled:
                self._step()
        for handle in self._handles.values():
            handle.cancel()
        self._pipeline.step()

    def _step(self) -> None:
        self._pipeline.step()
        self._report()

    def _begin(self, command: dict[str, Any]) -> None:
        config = GenerationConfig()
        for name, value in command["config"].items():
            setattr(config, name, set(value) if isinstance(value, list) else value)
        prompt = openvino.Tensor(np.array([command["prompt"]], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(command["id"], prompt, config)
        except Exception as error:  # noqa: BLE001  # only this generation failed
            self._lines.send({"id": command["id"], "error": str(error)})
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
            elif handle.get_status() != GenerationStatus.RUNNING:  # dropped in silence
                del self._handles[number]
                self._lines.send({"id": number, "error": "the cache has no room for it"})
        self._lines.send({"steps": steps})


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    die_with_parent(int(sys.argv[1]))
    write_tracebacks_on_signal()
    lines = BlockingJsonLines()
    setup = lines.receive()
    if setup is None:
        return
    try:
        pipeline = make_pipeline(**setup)
    except Exception as error:  # noqa: BLE001  # the parent reports it
        lines.send({"error": str(error)})
        sys.exit(1)
    lines.send({"ready": True})
    _Steps(pipeline, lines).serve()


if __name__ == "__main__":
    main()
