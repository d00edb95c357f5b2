"""Prometheus metrics of text_svc, in addition to those of every gRPC server."""

from __future__ import annotations

import logging
from collections import Counter as Counts
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ml.internal.link_pb2 import Usage
from shared.model_host import ModelState
from shared.model_ids import ModelId
from shared.telemetry.process_metrics import tree_figures
from text_svc.models.model import ManagedModel
from text_svc.models.registry import Registry

log = logging.getLogger(__name__)

# Largest file of metrics of a model's process; they begin with 1 MiB and grow with labels.
MAX_FIGURES_BYTES = 16 << 20
# From 1 ms (no queue) to 1 minute (a long one).
_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

PROMPT_TOKENS = Counter("text_prompt_tokens", "Tokens of prompts.", ["model"])
GENERATED_TOKENS = Counter("text_generated_tokens", "Tokens generated.", ["model"])
QUEUE_SECONDS = Histogram(
    "text_queue_seconds",
    "Time that generations waited for their turn.",
    ["model"],
    buckets=_BUCKETS,
)
FIRST_TOKEN_SECONDS = Histogram(
    "text_first_token_seconds",
    "Time from a generation's arrival to its first token.",
    ["model"],
    buckets=_BUCKETS,
)
EMBEDDED_TEXTS = Counter("text_embedded_texts", "Texts embedded.", ["model"])
EMBEDDED_TOKENS = Counter("text_embedded_tokens", "Tokens of the texts embedded.", ["model"])


def observe(model_id: ModelId, usage: Usage | None) -> None:
    """Counts what a response of a model's process has used.

    Args:
        model_id: the model.
        usage: as it came with the response; None counts nothing.
    """
    if usage is None:
        return
    if usage.HasField("embedding"):
        EMBEDDED_TEXTS.labels(model_id).inc(usage.embedding.texts)
        EMBEDDED_TOKENS.labels(model_id).inc(usage.embedding.tokens)
    else:
        generation = usage.generation
        PROMPT_TOKENS.labels(model_id).inc(generation.prompt_tokens)
        GENERATED_TOKENS.labels(model_id).inc(generation.generated_tokens)
        QUEUE_SECONDS.labels(model_id).observe(generation.queue_seconds)
        FIRST_TOKEN_SECONDS.labels(model_id).observe(generation.first_token_seconds)


class ModelCollector(Collector):
    """The state of the models when the metrics page is read, and figures of their processes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        models = self._registry.models()
        counts = Counts(model.state for model in models)
        states = GaugeMetricFamily("text_models", "Models by state.", labels=["state"])
        for state in ModelState:
            states.add_metric([state.value], counts[state])
        yield states
        budget = GaugeMetricFamily(
            "text_memory_budget_bytes", "Memory that models may use.", labels=["device"]
        )
        reserved = GaugeMetricFamily(
            "text_memory_reserved_bytes",
            "Part of the budget that models have reserved.",
            labels=["device"],
        )
        for pool in self._registry.memory():
            budget.add_metric([pool.device], pool.budget_bytes)
            reserved.add_metric([pool.device], pool.reserved_bytes)
        yield from (budget, reserved)
        ends = CounterMetricFamily(
            "text_model_ends",
            "Processes of models that hung or died when they were ready.",
            labels=["model", "how"],
        )
        for (model_id, how), count in self._registry.ends.items():
            ends.add_metric([model_id, how], count)
        yield ends
        yield from _of_engines(models)
        yield from self._processes()

    def _processes(self) -> Iterable[Metric]:
        calls = _gauge("text_model_running_calls", "Calls that a model answers now.")
        memory = _gauge(
            "text_model_resident_memory_bytes", "Resident memory of a model's processes."
        )
        held = _gauge(
            "text_model_held_memory_bytes",
            "Memory of a model's processes; what processes share counts in parts (PSS).",
        )
        weights = _gauge("text_model_weights_bytes", "Weights of a model, a part of its memory.")
        cache = _gauge(
            "text_model_cache_bytes", "What the key-value cache of a model has taken so far."
        )
        cache_limit = _gauge(
            "text_model_cache_limit_bytes", "The most that a model's key-value cache may take."
        )
        threads = _gauge("text_model_threads", "Threads of a model's processes.")
        open_fds = _gauge("text_model_open_fds", "File descriptors open in a model's processes.")
        cpu = CounterMetricFamily(
            "text_model_cpu_seconds", "CPU time of a model's processes.", labels=["model"]
        )
        for model in self._registry.models():
            label = [model.model_id]
            calls.add_metric(label, model.calls)
            held.add_metric(label, model.ram_bytes)
            weights.add_metric(label, model.weights_bytes)
            cache.add_metric(label, model.cache_bytes)
            cache_limit.add_metric(label, model.cache_limit_bytes)
            figures = tree_figures(model.process.pid) if model.process else None
            if figures:
                memory.add_metric(label, figures.resident_bytes)
                threads.add_metric(label, figures.threads)
                open_fds.add_metric(label, figures.open_fds)
                cpu.add_metric(label, figures.cpu_seconds)
        yield from (calls, memory, held, weights, cache, cache_limit, threads, open_fds, cpu)


def _of_engines(models: Iterable[ManagedModel]) -> Iterable[Metric]:
    """The metrics that workers write to files, see `text_svc.worker.engines.metrics`.

    A process has its own folder for them, and is not trusted: what it says of other models, or in
    files that are too large or no such files, is left out.
    """
    metrics: dict[str, Metric] = {}
    for model in models:
        if model.process is None:
            continue
        files = [str(path) for path in model.process.spec.scratch.glob("*.db") if _small(path)]
        try:
            found = list(MultiProcessCollector.merge(files))
        except Exception as error:  # noqa: BLE001  # its process has ended, or wrote anything
            log.debug("no metrics", extra={"model": model.model_id, "error": repr(error)})
            continue
        for metric in found:
            own = [each for each in metric.samples if each.labels.get("model") == model.model_id]
            all_models = metrics.setdefault(metric.name, metric)
            all_models.samples = own if all_models is metric else all_models.samples + own
    return metrics.values()


def _small(path: Path) -> bool:
    try:
        return path.stat().st_size <= MAX_FIGURES_BYTES
    except FileNotFoundError:
        return False


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model"])
