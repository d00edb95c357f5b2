"""The child process of `openvino_stepper`: reads commands, steps, and writes what each step made.

All messages are JSON, one per line:

    in:  {"folder": …, "cache_blocks": …, "running": …, "precision": …, "threads": …}, once
         {"id": 1, "prompt": [ids], "config": {GenerationConfig's attributes}}
         {"cancel": 1}
         {"give_back": {"renew": true or false}}, while there is no generation
    out: {"ready": true} or {"error": …}, once
         {"steps": [[id, [tokens], "stop" or "length" or null, [log-probabilities] or null], …]},
             after each step; empty after one that only read a piece of a prompt. The first has
             "cache_bytes" besides: the size of the key-value cache
         {"given_back": true, "renewed": true or false}
         {"id": 1, "error": …}
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino_genai import (
    ContinuousBatchingPipeline,
    GenerationConfig,
    GenerationFinishReason,
    GenerationStatus,
    SchedulerConfig,
    StructuredOutputConfig,
)

from shared.process import die_with_parent
from text_svc.formats.manifest import MODEL
from text_svc.link.json_lines import BlockingJsonLines
from text_svc.processes.native_memory import let_go_of_files, trim
from text_svc.processes.tracebacks import write_tracebacks_on_signal

# Tokens of a step. A long prompt is read in pieces, so that running generations do not wait.
STEP_TOKENS = 256

_REASONS = {GenerationFinishReason.STOP: "stop", GenerationFinishReason.LENGTH: "length"}


# In a generation's config, what is no attribute of GenerationConfig, see `structured_output`.
FORM = "form"
_FORM_KINDS = {"calls": "structural_tags_config"}


def structured_output(form: dict[str, str]) -> StructuredOutputConfig:
    """A form of answers: {its kind: text}, see `Form`."""
    return StructuredOutputConfig(**{_FORM_KINDS.get(kind, kind): form[kind] for kind in form})


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
    if precision == "f32":
        # OpenVINO's own choice on the processors that were tried; so its size is known before.
        properties["KV_CACHE_PRECISION"] = "f16"
    return ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)


class _Steps:
    """The pipeline and its running generations.

    Args:
        make: makes the pipeline.
        folder: of the model.
        lines: commands and answers.
    """

    def __init__(
        self,
        make: Callable[[], ContinuousBatchingPipeline],
        folder: Path,
        lines: BlockingJsonLines,
    ) -> None:
        self._make = make
        self._folder = folder
        self._pipeline = make()
        self._lines = lines
        self._told_size = False
        self._handles: dict[int, Any] = {}
        self._with_logprobs: set[int] = set()

    def serve(self) -> None:
        """Runs until stdin ends."""
        while not self._lines.ended:
            cancelled, wait = False, not self._handles
            while (command := self._lines.receive(wait=wait)) is not None:
                wait = False
                if handle := self._handles.pop(command.get("cancel", 0), None):
                    handle.cancel()
                    cancelled = True
                elif "give_back" in command:
                    if cancelled:
                        self._step()
                        cancelled = False
                    self._give_back(**command["give_back"])
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

    def _give_back(self, renew: bool) -> None:
        # A newer conversion of the model may have replaced the folder.
        renew = renew and (self._folder / MODEL).exists()
        if renew:
            del self._pipeline  # its memory first
            gc.collect()
            self._pipeline = self._make()
        # OpenVINO has packed most weights into memory of its own. Of the file it reads on the
        # embeddings of tokens.
        let_go_of_files(self._folder)
        trim()
        self._lines.send({"given_back": True, "renewed": renew})

    def _begin(self, command: dict[str, Any]) -> None:
        config = GenerationConfig()
        for name, value in command["config"].items():
            if name == FORM:
                config.structured_output_config = structured_output(value)
            else:
                setattr(config, name, set(value) if isinstance(value, list) else value)
        prompt = openvino.Tensor(np.array([command["prompt"]], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(command["id"], prompt, config)
        except Exception as error:  # noqa: BLE001  # only this generation failed
            self._lines.send({"id": command["id"], "error": str(error)})
        else:
            self._handles[command["id"]] = handle
            if config.logprobs:
                self._with_logprobs.add(command["id"])

    def _report(self) -> None:
        steps = []
        self._with_logprobs &= self._handles.keys()
        for number, handle in list(self._handles.items()):
            tokens: list[int] = []
            logprobs: list[float] | None = [] if number in self._with_logprobs else None
            reason = None
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    if logprobs is not None:
                        logprobs += output.generated_log_probs
                    reason = _REASONS.get(output.finish_reason)
            if reason:
                del self._handles[number]
            if tokens:
                steps.append((number, tokens, reason, logprobs))
            elif handle.get_status() != GenerationStatus.RUNNING:  # dropped in silence
                del self._handles[number]
                self._lines.send({"id": number, "error": "the cache has no room for it"})
        message: dict[str, Any] = {"steps": steps}
        if not self._told_size:
            self._told_size = True
            message["cache_bytes"] = self._pipeline.get_metrics().kv_cache_size_in_bytes
        self._lines.send(message)


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    die_with_parent(int(sys.argv[1]))
    write_tracebacks_on_signal()
    lines = BlockingJsonLines()
    setup = lines.receive()
    if setup is None:
        return
    try:
        steps = _Steps(partial(make_pipeline, **setup), Path(setup["folder"]), lines)
    except Exception as error:  # noqa: BLE001  # the parent reports it
        lines.send({"error": str(error)})
        sys.exit(1)
    lines.send({"ready": True})
    steps.serve()


if __name__ == "__main__":
    main()
