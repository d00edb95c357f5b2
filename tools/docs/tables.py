"""Tables made from the code, such as those of settings, pipeline types, models, errors and RPCs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from http_svc.settings import HttpSettings
from model_mgmt_svc.settings import ModelMgmtSettings
from shared import errors
from shared.pipelines import ANY, PIPELINES, TEXT_PIPELINES
from shared.settings import ServerSettings, ServiceSettings, variable_name
from text_svc.options import LoadOptions
from text_svc.settings import TextSettings
from tools.docs.places import ROOT, row
from tools.models import manifest
from vision_svc.settings import VisionSettings

SERVICES: tuple[type[ServiceSettings], ...] = (
    ModelMgmtSettings,
    TextSettings,
    VisionSettings,
    HttpSettings,
)
PROTOS = ("model_management", "transformers", "mediapipe")
ALERTS = ROOT / "deploy" / "monitoring" / "rules" / "alerts.yml"

# An RPC in a proto, with the comment above it.
_RPC = re.compile(
    r"((?:^ *//.*\n)*)^ *rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);", re.MULTILINE
)
_KINDS = {
    (False, False): "unary",
    (False, True): "server stream",
    (True, False): "client stream",
    (True, True): "bidirectional stream",
}
# What makes a metric: classes of prometheus_client, and text_svc's helper around one of them.
_METRICS = {
    "Counter": "counter",
    "CounterMetricFamily": "counter",
    "Gauge": "gauge",
    "GaugeMetricFamily": "gauge",
    "_gauge": "gauge",
    "Histogram": "histogram",
}
_METRIC_FOLDERS = ("shared", "model_mgmt_svc", "text_svc", "vision_svc", "http_svc")
# The template language of Prometheus in an alert's sentence.
_LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
_VALUE = re.compile(r"\{\{ \$value(?: \| humanize\w*)? \}\}( %)?")


def _default(field: FieldInfo) -> str:
    text = str(field.default).replace(str(Path.home()), "~")
    return f"`{text}`"


def _rows(settings: type[ServiceSettings], names: Iterator[str]) -> Iterator[str]:
    for name in names:
        field = settings.model_fields[name]
        yield row(f"`{variable_name(settings, name)}`", _default(field), str(field.description))


def settings_table() -> str:
    """The variables of each service; the common ones stand once, but for their ports."""
    lines = [row("variable", "default", "meaning"), row("---", "---", "---")]
    common = set(ServerSettings.model_fields)
    for settings in SERVICES:
        own = (n for n in settings.model_fields if n not in common or n.endswith("port"))
        lines += _rows(settings, own)
    lines.append(row("**every service, here text_svc**", "", ""))
    lines += _rows(TextSettings, (n for n in ServerSettings.model_fields if not n.endswith("port")))
    return "\n".join(lines)


def pipelines_table() -> str:
    """The pipeline types, their aliases, the service, its RPCs and what Infer makes of what."""
    head = ("pipeline type", "also accepted", "service", "RPCs", "Infer")
    lines = [row(*head), row(*["---"] * len(head))]
    for pipeline in PIPELINES:
        infers = ", ".join(each.replace(" to ", " → ") for each in pipeline.infers)
        lines.append(
            row(
                f"`{pipeline.name}`",
                _code(pipeline.aliases),
                pipeline.service,
                _code(pipeline.calls),
                infers,
            )
        )
    return "\n".join(lines)


def kinds_table() -> str:
    """What says that a model is of a type, and the models that it loads besides its own."""
    head = ("pipeline type", "hints and model_type", "architectures", "words in ids", "loads too")
    lines = [row(*head), row(*["---"] * len(head))]
    for pipeline in TEXT_PIPELINES:
        architectures = _code(f"…{suffix}" for suffix in pipeline.architecture_suffixes)
        loads = "all" if ANY in pipeline.loads else _code(pipeline.loads)
        kinds, ids = _code(pipeline.kinds), _code(pipeline.ids)
        lines.append(row(f"`{pipeline.name}`", kinds, architectures, ids, loads))
    return "\n".join(lines)


def _code(names: Iterable[str]) -> str:
    """Names in a table's cell."""
    return ", ".join(f"`{name}`" for name in names)


def models_table() -> str:
    """The text models that `make models` fetches."""
    lines = [row("model", "pipeline type", "licence"), row(*["---"] * 3)]
    for asset in manifest.load().select([], "text"):
        name = asset.folder.removeprefix("text/")
        lines.append(row(f"`{name}`", f"`{asset.pipeline}`", asset.licence))
    return "\n".join(lines)


def errors_table() -> str:
    """The errors that callers see, in the order of `shared/errors.py`."""
    lines = [row("code", "reason", "class", "when"), row(*["---"] * 4)]
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.ServiceError):
            if error is errors.ServiceError:
                continue
            when = " ".join((error.__doc__ or "").split())
            lines.append(
                row(f"`{error.code.name}`", f"`{error.reason}`", f"`{error.__name__}`", when)
            )
    return "\n".join(lines)


def _values(field: FieldInfo) -> str:
    """The values that an option takes, as its annotation and limits say."""
    if words := [word for word in get_args(field.annotation) if isinstance(word, str)]:
        return ", ".join(f"`{word}`" for word in words)
    limits = {type(each).__name__: each for each in field.metadata}
    low: Any = getattr(limits.get("Ge"), "ge", None)
    high: Any = getattr(limits.get("Le"), "le", None)
    if low is None:
        return "text"
    return f"{low} to {high}" if high is not None else f"{low} or more"


def load_options_table() -> str:
    """The options of `LoadModel` for text models."""
    lines = [row("option", "values", "default", "meaning"), row(*["---"] * 4)]
    for name, field in LoadOptions.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(row(f"`{name}`", _values(field), default, str(field.description)))
    return "\n".join(lines)


def rpcs_table() -> str:
    """The RPCs of the contract with the first sentence of their comments."""
    lines = [row("RPC", "kind", "request", "response", "purpose"), row(*["---"] * 5)]
    for proto in PROTOS:
        text = (ROOT / "protos" / "ml" / f"{proto}.proto").read_text()
        service = re.search(r"^service (\w+)", text, re.MULTILINE)
        assert service, proto
        lines.append(row(f"**{service[1]}**", "", "", "", ""))
        for comment, name, asks, request, answers, response in _RPC.findall(text):
            words = " ".join(re.sub(r"^ *//", "", comment, flags=re.MULTILINE).split())
            purpose = re.split(r"(?<=\.) (?=[A-Z])", words, maxsplit=1)[0]
            kind = _KINDS[bool(asks), bool(answers)]
            lines.append(row(f"`{name}`", kind, f"`{request}`", f"`{response}`", purpose))
    return "\n".join(lines)


def _metric(call: ast.Call) -> tuple[str, str, str] | None:
    """Name, kind and meaning, if the call makes a metric."""
    kind = _METRICS.get(call.func.id) if isinstance(call.func, ast.Name) else None
    texts = [each.value for each in call.args[:2] if isinstance(each, ast.Constant)]
    if kind is None or len(texts) < 2:
        return None
    name, meaning = map(str, texts)
    return f"{name}_total" if kind == "counter" else name, kind, meaning


def metrics_table() -> str:
    """The metrics of the services, read from their sources."""
    lines = [row("metric", "kind", "meaning"), row(*["---"] * 3)]
    for folder in _METRIC_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and (metric := _metric(node)):
                    name, kind, meaning = metric
                    lines.append(row(f"`{name}`", kind, meaning))
    return "\n".join(lines)


def alerts_table() -> str:
    """The alerts of the monitoring, with their severity and delay."""
    lines = [row("alert", "severity", "after", "says"), row(*["---"] * 4)]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            says = _LABEL.sub(r"*\1*", rule["annotations"]["summary"])
            says = _VALUE.sub(r"*value*\1", says)
            after = rule.get("for", "at once")
            lines.append(row(f"`{rule['alert']}`", rule["labels"]["severity"], after, says))
    return "\n".join(lines)
