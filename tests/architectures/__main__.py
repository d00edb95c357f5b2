"""Runs cases, each in a process of its own: `python -m tests.architectures [WORDS]`.

What is imported is imported once; a case is a fork with limits of time and memory, so that one that
hangs or crashes is a row of the table and not the end. Results are kept in out/architectures.jsonl,
and the table is written from them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import transformers

from tests.architectures import table
from tests.architectures.comparison import BROKEN, DIFFERENT, run
from tests.architectures.mappings import Case, cases

# For one case; most take 1 to 10 s and 1 GB.
SECONDS = 300
MEMORY_BYTES = 8 << 30
# Cases of the sample: of those that are converted, and of the others. They take about a minute on
# two cores.
CONVERTED, OTHERS = 7, 28
# Results that `--missing` tries again.
_AGAIN = (BROKEN, DIFFERENT)
RESULTS = table.ROOT / "out" / "architectures.jsonl"

# Imported once for all cases; nothing of it may start a thread.
_IMPORTED = (
    *("openvino_genai", "nncf", "optimum.exporters.openvino", "transformers.pipelines"),
    *("text_svc.convert.decoder", "text_svc.convert.encoder", "transformers.generation"),
    *("text_svc.worker.engines.openvino", "text_svc.worker.engines.transformers"),
    *("text_svc.worker.embeddings.openvino", "text_svc.worker.embeddings.torch"),
    *("text_svc.worker.pipelines.text_generation", "text_svc.worker.pipelines.janus"),
    *("text_svc.worker.pipelines.text_classification", "text_svc.worker.pipelines.reranking"),
    *("text_svc.worker.pipelines.token_classification", "text_svc.worker.pipelines.florence2"),
    *("text_svc.worker.pipelines.sequence_to_sequence", "text_svc.worker.pipelines.dual_encoder"),
    *("text_svc.worker.pipelines.speech_recognition", "transformers.models.bert.modeling_bert"),
)


@dataclass(frozen=True)
class _Child:
    case: Case
    pipe: int
    scratch: str
    begun: float


def _import_all() -> None:
    # Without this package, OpenVINO and nncf cannot send usage statistics.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    for name in _IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()


def _answer(case: Case, scratch: str) -> str:
    """In the child: the result of its case."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    if not os.environ.get("ARCHITECTURES_LOGS"):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    torch.set_num_threads(1)
    tempfile.tempdir = scratch  # what it leaves behind goes with this folder
    try:
        return run(case, Path(scratch))
    except BaseException as error:  # noqa: BLE001  # the row says so
        traceback.print_exc()
        return f"{BROKEN}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _fork(case: Case) -> tuple[int, _Child]:
    scratch = tempfile.mkdtemp(prefix="architecture-")
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, _Child(case, read, scratch, time.monotonic())
    try:
        os.setpgid(0, 0)
        os.close(read)
        os.write(write, _answer(case, scratch).encode())
    finally:
        os._exit(0)


def run_all(chosen: Sequence[Case], processes: int) -> Iterator[tuple[Case, str, float]]:
    """Runs cases; gives each one's result and seconds when it has ended."""
    _import_all()
    waiting, running = list(reversed(chosen)), dict[int, _Child]()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                pid, child = _fork(waiting.pop())
                running[pid] = child
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                yield _ended(running.pop(pid), pid, status)
                continue
            for pid, child in running.items():
                if time.monotonic() - child.begun > SECONDS:
                    os.killpg(pid, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        for pid, child in running.items():
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            shutil.rmtree(child.scratch, ignore_errors=True)


def _ended(child: _Child, pid: int, status: int) -> tuple[Case, str, float]:
    seconds = time.monotonic() - child.begun
    with os.fdopen(child.pipe, "rb") as pipe:
        result = pipe.read().decode()
    if not result:
        late = seconds > SECONDS
        why = f"it takes over {SECONDS} s" if late else f"its process ends with {status}"
        result = f"{BROKEN}: {why}"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # processes that it has left
    shutil.rmtree(child.scratch, ignore_errors=True)
    return child.case, result, seconds


def _chosen(words: Sequence[str]) -> list[Case]:
    """Cases that have one of the words of each kind: pipelines, engines, and model types."""
    chosen = cases()
    known = (
        {case.pipeline for case in chosen},
        {case.engine for case in chosen},
        {case.model_type for case in chosen},
    )
    if unknown := set(words) - set().union(*known):
        sys.exit(f"{', '.join(sorted(unknown))} is no pipeline, engine or model type")
    left = set(words)
    for kind, named in zip(known, ("pipeline", "engine", "model_type"), strict=True):
        if wanted := kind & left:  # "clip" is a pipeline and a model type
            chosen = [case for case in chosen if getattr(case, named) in wanted]
            left -= wanted
    return chosen


def _sample(seed: str) -> list[Case]:
    """Some of the cases that the table has a result of, the same ones for a seed."""
    promised = table.read()
    dice = random.Random(seed)
    sample: list[Case] = []
    for is_converted, count in ((True, CONVERTED), (False, OTHERS)):
        group = [case for case in cases() if (case.engine == "openvino") is is_converted]
        group = [case for case in group if promised.get(case, table.NOT_RUN) != table.NOT_RUN]
        if is_converted:  # the others are refused, which takes as long as a conversion
            group = [case for case in group if promised.get(case) == table.EQUAL]
        sample += dice.sample(group, min(count, len(group)))
    return sample


def _kept(path: Path) -> dict[Case, str]:
    known = {case.key: case for case in cases()}
    lines = path.read_text().splitlines() if path.exists() else []
    kept = dict(json.loads(line) for line in lines)
    return {known[key]: result for key, result in kept.items() if key in known}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("words", nargs="*", help="only these pipelines, engines and model types")
    parser.add_argument("-n", type=int, default=os.cpu_count() or 1, help="cases at once")
    parser.add_argument("--seed", help="a sample of the cases, the same one for a seed")
    parser.add_argument(
        "--missing", action="store_true", help="only cases without a result that counts"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    chosen = _sample(options.seed) if options.seed else _chosen(options.words)
    if options.missing:
        kept = _kept(options.results)
        chosen = [case for case in chosen if table.kind(kept.get(case, BROKEN)) in _AGAIN]
    began = time.monotonic()
    counts: Counter[str] = Counter()
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("a") as file:
        for case, result, seconds in run_all(chosen, options.n):
            print(f"{seconds:5.1f} s  {case.key}: {result}", flush=True)
            file.write(json.dumps([case.key, result], ensure_ascii=False) + "\n")
            file.flush()
            counts[table.kind(result)] += 1
    said = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    print(f"{len(chosen)} cases in {time.monotonic() - began:.0f} s: {said}")
    if not options.seed:
        table.write(_kept(options.results))
        if not options.words:
            print(table.WRITTEN.read_text())


if __name__ == "__main__":
    main()
