"""Rules, alerts and dashboards against a real Prometheus that scrapes a running stack."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from ml import common_pb2 as common_pb
from ml import mediapipe_pb2 as vision_pb
from ml import mediapipe_pb2_grpc as vision_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as text_pb
from ml import transformers_pb2_grpc as text_grpc
from tests.support.prometheus import (
    MONITORING,
    MissingError,
    Prometheus,
    Tools,
    find_tools,
    run_prometheus,
)
from tests.support.stack import CHAT, EMBEDDER, SERVING_SECONDS, Stack, wait_for

DASHBOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
}
# What stays empty while all is well.
MAY_BE_EMPTY = {
    "Alerts",
    "Days until a certificate expires",
    "Generations cancelled by the caller",
}
# There only once one of them fires: its name cannot be looked up.
ONLY_WHEN_IT_HAPPENS = {"ALERTS"}


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    try:
        return find_tools(tmp_path_factory.mktemp("prometheus_package"))
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def prometheus(
    tools: Tools, stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the shared stack, through which traffic runs."""
    jobs = ("model_mgmt", "text", "vision", "envoy")
    targets = {job: stack.addresses[f"{job}_metrics"] for job in jobs}
    with stack.channel() as channel:
        # A first load may take longer than the panels look back; the traffic repeats it.
        stub = models_grpc.ModelManagementServiceStub(channel)
        for model in (EMBEDDER, CHAT):
            stub.LoadModel(models_pb.LoadModelRequest(model_id=model), timeout=SERVING_SECONDS)
    stop = threading.Event()
    traffic = threading.Thread(target=make_traffic, args=(stack, stop))
    with run_prometheus(tools, tmp_path_factory.mktemp("prometheus"), targets) as running:
        traffic.start()
        try:
            yield running
        finally:
            stop.set()
            traffic.join()


def make_traffic(stack: Stack, stop: threading.Event) -> None:
    """Some calls of each kind, again and again."""
    frame = vision_pb.VideoFrame(frame_data=bytes(64 * 64 * 3), format="rgb", width=64, height=64)
    texts = text_pb.GenerateEmbeddingsRequest(model=EMBEDDER, texts=["one", "two"])
    chat = text_pb.ChatRequest(
        model=CHAT, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    file = models_pb.ModelFileRequest(model_id=EMBEDDER, file_path="config.json")
    with stack.channel() as channel:
        models = models_grpc.ModelManagementServiceStub(channel)
        text = text_grpc.TransformersServiceStub(channel)
        vision = vision_grpc.MediapipeServiceStub(channel)
        while not stop.wait(0.2):
            try:
                for model in (EMBEDDER, CHAT):
                    models.LoadModel(models_pb.LoadModelRequest(model_id=model))
                text.GenerateEmbeddings(texts)
                list(text.ChatCompletion(chat))
                list(models.GetModelFile(file))
                list(vision.StreamFaceDetection(iter([frame] * 3)))
                models.GetLoadedModels(common_pb.EmptyRequest())
                models.UnloadModel(models_pb.UnloadModelRequest(model_id="nobody/nothing"))
            except grpc.RpcError:
                pass  # the last one always fails


def panels() -> Iterator[Any]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            yield pytest.param(panel, id=f"{name}-{panel['title']}")


def plain(expression: str) -> str:
    """A panel's expression as Grafana would send it."""
    expression = expression.replace("$__rate_interval", "10s")
    return re.sub(r"\$\w+", ".*", expression)


@pytest.mark.parametrize("panel", list(panels()))
def test_every_panel_has_data(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = plain(target["expr"])
        series = prometheus.query(expression)  # fails where Prometheus refuses it
        if panel["title"] not in MAY_BE_EMPTY:

            def known(expression: str = expression) -> list[tuple[dict[str, str], float]]:
                found = prometheus.query(expression)
                return found if any(not math.isnan(value) for _, value in found) else []

            series = wait_for(f"data for {expression}", known)
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert all(label in labels for labels, _ in series), label


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]]:
        rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else []

    rules = wait_for("the evaluation of all rules", evaluated)
    assert len(rules) > 20
    assert [rule for rule in rules if rule["health"] != "ok"] == []


def names_in(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]", " ", bare)
    names = re.findall(r"[a-zA-Z_][\w:]*(?!\w*\s*\()\b", bare)
    return {name for name in names if "_" in name or ":" in name or name == "up"} - {
        "histogram_quantile"
    }


def test_the_metrics_of_rules_and_panels_exist(prometheus: Prometheus) -> None:
    """A name that nothing has would make an alert that never fires."""
    expressions = [
        plain(target["expr"])
        for dashboard in DASHBOARDS.values()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    for path in (MONITORING / "rules").glob("*.yml"):
        groups = yaml.safe_load(path.read_text())["groups"]
        expressions += [rule["expr"] for group in groups for rule in group["rules"]]
    wanted = set().union(*map(names_in, expressions)) - ONLY_WHEN_IT_HAPPENS
    assert {"up", "text_models", "service:grpc_server_errors:ratio5m"} <= wanted

    def all_known() -> bool:
        return wanted <= set(prometheus.ask("label/__name__/values"))

    try:
        wait_for("all metrics", all_known)
    except AssertionError:
        missing = wanted - set(prometheus.ask("label/__name__/values"))
        raise AssertionError(f"no series is called {sorted(missing)}") from None


def test_each_model_s_process_has_figures(prometheus: Prometheus) -> None:
    for name in ("resident_memory_bytes", "cpu_seconds_total", "threads", "open_fds"):

        def both(name: str = name) -> bool:
            figures = prometheus.query(f"text_model_{name}")
            return {labels["model"] for labels, value in figures if value > 0} >= {EMBEDDER, CHAT}

        wait_for(f"text_model_{name} of both models", both)


def test_a_healthy_stack_raises_no_alert(prometheus: Prometheus) -> None:
    test_every_rule_is_evaluated(prometheus)
    firing = prometheus.query('ALERTS{alertstate="firing"}')
    assert [labels["alertname"] for labels, _ in firing] == []


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules/recording.yml", "rules/alerts.yml"),
        ("test", "rules", "tests/alerts.yml"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_accepts(tools: Tools, command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [tools.promtool, *command], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_and_says_what_is_wrong() -> None:
    groups = yaml.safe_load((MONITORING / "rules" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    cases = yaml.safe_load((MONITORING / "tests" / "alerts.yml").read_text())["tests"]
    tested = {one["alertname"] for case in cases for one in case.get("alert_rule_test", ())}
    assert tested == set(alerts)
    for rule in alerts.values():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_dashboards_are_provisioned() -> None:
    grafana = MONITORING / "grafana"
    (source,) = yaml.safe_load((grafana / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((grafana / "provisioning/dashboards/dashboards.yml").read_text())[
        "providers"
    ]
    assert Path(provider["options"]["path"]).name == "dashboards"
    assert set(DASHBOARDS) == {"traffic", "text", "vision", "models"}
    titles = {panel["title"] for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]}
    assert titles >= MAY_BE_EMPTY
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    for dashboard in DASHBOARDS.values():
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {source["uid"]}
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24, panel["title"]
            assert not cells & taken, panel["title"]
            taken |= cells
