"""LoadModel of models that are converted already, by the parts of a load.

`python -m tests.bench.bench_loads` starts a stack with `TEXT_FORK_SERVER`, one without, and loads
each model several times in turns, through Envoy, from a warm cache of files. Results go to
out/bench/loads.json and .md.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ml import model_management_pb2, model_management_pb2_grpc
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.support.stack import CHAT, EMBEDDER, Stack, stack_in

MODELS = {CHAT: "text-generation", EMBEDDER: "feature-extraction"}
# Of text_svc, in order; those of the model's process are parts of "process".
PARTS = ("files", "inspection", "conversion", "process", "reading", "trial", "giving back")
ARMS = {"forked": "true", "not forked": "false"}


def load(stack: Stack, model: str) -> float:
    """Seconds of a LoadModel. The model is unloaded afterwards."""
    with stack.channel() as channel:
        stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        request = model_management_pb2.LoadModelRequest(model_id=model, pipeline_type=MODELS[model])
        start = time.monotonic()
        stub.LoadModel(request)
        seconds = time.monotonic() - start
        stub.UnloadModel(model_management_pb2.UnloadModelRequest(model_id=model))
    return seconds


def parts(stack: Stack, model: str) -> list[dict[str, float]]:
    """What text_svc has logged of each load of a model."""
    found = []
    for line in (stack.logs / "text_svc.log").read_text(errors="replace").splitlines():
        if "model ready" in line:
            entry: dict[str, Any] = json.loads(line)
            if entry["model"] == model:
                found.append(entry["seconds"])
    return found


def table(report: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    rows = []
    for model in MODELS:
        for arm in ARMS:
            each = report[arm][model]
            times = " | ".join(f"{each['parts'].get(part, 0):.2f}" for part in PARTS)
            rows.append(f"| {model.partition('/')[2]}, {arm} | {each['seconds']:.2f} | {times} |")
    return "\n".join(
        [
            "Seconds, medians.",
            "",
            f"| model | LoadModel | {' | '.join(PARTS)} |",
            f"|---|---:|{'---:|' * len(PARTS)}",
            *rows,
        ]
    )


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    seconds: dict[str, dict[str, list[float]]] = {
        arm: {model: [] for model in MODELS} for arm in ARMS
    }
    report: dict[str, dict[str, Any]] = {arm: {} for arm in ARMS}
    try:
        with quiet_machine(busy=options.busy) as machine, ExitStack() as running:
            stacks = {}
            for arm, value in ARMS.items():
                os.environ["TEXT_FORK_SERVER"] = value
                stacks[arm] = running.enter_context(stack_in(folder / value))
                stacks[arm].wait_serving()
            for number in range(options.rounds + 1):
                for arm, stack in stacks.items():
                    for model in MODELS:
                        took = load(stack, model)
                        if number:  # the first converts, and fills caches
                            seconds[arm][model].append(took)
            for arm, stack in stacks.items():
                for model in MODELS:
                    logged = parts(stack, model)[1:]
                    report[arm][model] = {
                        "seconds": statistics.median(seconds[arm][model]),
                        "runs": seconds[arm][model],
                        "parts": {
                            part: statistics.median(each.get(part, 0) for each in logged)
                            for part in PARTS
                        },
                    }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    publish(options.out, "loads", machine, report, table(report))


if __name__ == "__main__":
    main()
