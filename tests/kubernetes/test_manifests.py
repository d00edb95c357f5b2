"""The manifests: valid, confined, with the ports, limits, variables and probes of Compose."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from http_svc.settings import HttpSettings
from model_mgmt_svc.settings import ModelMgmtSettings
from stack.envoy_config import write_container_configs
from tests.kubernetes.manifests import SERVICES, Built, compose, mebibytes, probes
from tests.support.stack import ROOT
from text_svc.settings import TextSettings
from tools.kubernetes import HOSTS, MANIFESTS
from vision_svc.settings import VisionSettings

OVERLAYS = sorted(each.name for each in (MANIFESTS / "overlays").iterdir())
# The largest object that `kubectl apply` takes: it keeps a copy of each in an annotation.
MOST_BYTES = 256 * 1024
SETTINGS = {
    "model-mgmt": ModelMgmtSettings,
    "text": TextSettings,
    "vision": VisionSettings,
    "http": HttpSettings,
}


def compose_name(name: str) -> str:
    return name.replace("-", "_")


def test_every_kustomization_is_valid(cluster_tools: Path, manifests: Path) -> None:
    result = subprocess.run(
        [cluster_tools / "validate.sh", manifests], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert {f"overlays/{name}" for name in OVERLAYS} | {"base"} == set(
        re.findall(r"^ok +(\S+):", result.stdout, re.MULTILINE)
    )


def test_every_component_has_an_overlay_or_is_part_of_one() -> None:
    used = {
        Path(each).name
        for file in MANIFESTS.rglob("kustomization.yaml")
        for each in yaml.safe_load(file.read_text()).get("components", ())
    }
    there = {each.name for each in (MANIFESTS / "components").iterdir()}
    # The cluster of the tests uses it.
    assert there - used == {"shared-cache"}


def test_no_object_is_too_large(base: Built, built: Callable[[str], Built]) -> None:
    for each in (*base.objects, *built("overlays/monitoring").objects):
        assert len(json.dumps(each)) < 0.95 * MOST_BYTES, each["metadata"]["name"]


def test_envoys_configuration_is_that_of_its_image_but_for_names(
    base: Built, tmp_path: Path
) -> None:
    write_container_configs(tmp_path)
    maps = [base.config(f"envoy-config-{name}") for name in (*map(str, range(1, 6)), "files")]
    assert sorted(name for each in maps for name in each) == sorted(
        each.name for each in tmp_path.iterdir()
    )
    for data in maps[:-1]:
        for name, text in data.items():
            of_image = (tmp_path / name).read_text()
            for host, service in HOSTS.items():
                of_image = of_image.replace(f"address: {host}\n", f"address: {service}\n")
            assert text == of_image, name


def test_envoys_hosts_are_services_whose_addresses_are_those_of_ready_pods(base: Built) -> None:
    config = yaml.safe_load(base.config("envoy-config-1")["envoy.yaml"])
    hosts = {
        (address["address"], address["port_value"])
        for cluster in config["static_resources"]["clusters"]
        for group in cluster.get("load_assignment", {}).get("endpoints", ())
        for host in group["lb_endpoints"]
        if (address := host["endpoint"]["address"].get("socket_address"))
        and cluster["name"] != "admin"
    }
    assert {name for name, _ in hosts} == {"model-mgmt", "text", "vision", "http"}
    for name, port in hosts:
        service = base.one("Service", name)["spec"]
        assert service["clusterIP"] == "None"
        assert "publishNotReadyAddresses" not in service
        assert [each["port"] for each in service["ports"]] == [port]


def test_model_mgmt_sees_replicas_that_are_not_ready(base: Built) -> None:
    variables = base.env("model-mgmt")
    for name in ("text", "vision"):
        host, _, port = variables[f"MODEL_MGMT_{name.upper()}_ADDRS"].partition(":")
        service, ready = base.one("Service", host)["spec"], base.one("Service", name)["spec"]
        assert service["publishNotReadyAddresses"] is True
        assert service["clusterIP"] == "None"
        assert service["selector"] == ready["selector"]
        assert [str(each["port"]) for each in service["ports"]] == [port]


@pytest.mark.parametrize("overlay", ["overlays/demo", "overlays/hpa", "overlays/tls"])
def test_every_pod_is_confined(built: Callable[[str], Built], overlay: str) -> None:
    pods = built(overlay)
    for name in pods.workloads():
        pod = pods.pod(name)
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        account = pods.one("ServiceAccount", pod["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False, name
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            resources = container["resources"]
            assert resources["limits"]["memory"] == resources["requests"]["memory"], name
    namespace = pods.one("Namespace", "ml-services")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"


def test_limits_and_images_are_those_of_compose(built: Callable[[str], Built]) -> None:
    demo, services = built("overlays/demo"), compose()
    for name in demo.workloads():
        service = services[compose_name(name)]
        container = demo.container(name)
        assert container["image"].split(":")[0] == service["image"].split(":")[0]
        limit = mebibytes(container["resources"]["limits"]["memory"])
        assert limit == mebibytes(str(service["mem_limit"])), name
        (tmpfs,) = service["tmpfs"]
        (tmp,) = (each for each in demo.pod(name)["volumes"] if each["name"] == "tmp")
        size = mebibytes(tmp["emptyDir"]["sizeLimit"])
        assert tmpfs.endswith(f"size={size}m")
    (models,) = demo.pod("vision")["initContainers"]
    assert mebibytes(models["resources"]["limits"]["memory"]) == mebibytes(
        services["models"]["mem_limit"]
    )


def test_users_and_ports_are_those_of_the_images(base: Built) -> None:
    stages = re.split(r"^FROM ", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)
    for name in SERVICES:
        (stage,) = (each for each in stages if re.match(rf"\S+ AS {compose_name(name)}\n", each))
        ports = re.search(r"^EXPOSE (.*)$", stage, re.MULTILINE)
        assert ports
        listed = {str(each["containerPort"]) for each in base.container(name)["ports"]}
        assert listed == set(ports[1].split()), name
        context = base.pod(name)["securityContext"]
        user = f"{context['runAsUser']}:{context['runAsGroup']}"
        (image_user,) = set(re.findall(r"^USER (\d+:\d+)$", stage, re.MULTILINE)) or {"10001:10001"}
        assert user == image_user, name


def test_readiness_asks_what_the_images_health_check_asks(base: Built) -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for name in ("model-mgmt", "text", "vision"):
        container = base.container(name)
        prefix = compose_name(name).upper()
        asked = re.search(rf'shared.rpc.healthcheck", "{prefix}"(?:, "(\S+)")?', dockerfile)
        assert asked
        # The image of model_mgmt_svc asks for the process: one that waits for the lease is healthy.
        service = asked[1] or "ml.ModelManagementService"
        (port,) = (each["containerPort"] for each in container["ports"] if each["name"] == "grpc")
        assert container["readinessProbe"]["grpc"] == {"port": port, "service": service}
        # The process as a whole: it is alive while it waits for its models.
        assert container["startupProbe"]["grpc"] == container["livenessProbe"]["grpc"]
        assert container["livenessProbe"]["grpc"] == {"port": port}
    for kind, probe in probes(base.container("envoy")):
        assert probe["httpGet"] == {"path": "/ready", "port": "metrics"}, kind
    for kind, probe in probes(base.container("http")):
        assert probe["httpGet"] == {"path": "/health", "port": "http"}, kind


def test_variables_are_those_of_compose(base: Built) -> None:
    services = compose()
    # model_mgmt_svc has a Service of its own for replicas that are not ready.
    hosts = {"text:50062": "text-all:50062", "vision:50063": "vision-all:50063"}
    for name in SERVICES:
        variables = base.env(name)
        for variable, value in services[compose_name(name)]["environment"].items():
            if variable == "<<" or variable not in variables:
                continue
            wanted = as_text(value).replace("model_mgmt:", "model-mgmt:")
            if name == "model-mgmt":
                wanted = hosts.get(wanted, wanted)
            if variable in ("FILE_PROVIDER_ADDR", "MODEL_MGMT_MODELS_FILE", "ML_ADDRESS"):
                continue  # the application, a file that is always there, and every address
            assert variables[variable] == wanted, (name, variable)
    of_compose = {
        variable for name in SERVICES for variable in services[compose_name(name)]["environment"]
    }
    ours = {variable for name in SERVICES for variable in base.env(name)}
    # Its addresses in two networks; Envoy's paths; how long a replica without models waits
    # for a model_mgmt_svc that is replaced at the same time.
    assert of_compose - ours - {"<<"} == {"MODEL_MGMT_HOST", "MODEL_MGMT_METRICS_HOST"}
    paths = {"CONFIG_DIR", "TLS_DIR", "CALLERS_DIR"}
    waits = {"TEXT_ADMISSION_SECONDS", "VISION_ADMISSION_SECONDS"}
    assert ours - of_compose == paths | waits


def as_text(value: object) -> str:
    """A value as a container gets it."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("overlay", ["base", "overlays/hpa"])
def test_variables_are_settings(built: Callable[[str], Built], overlay: str) -> None:
    for name, kind in SETTINGS.items():
        prefix = f"{compose_name(name).upper()}_"
        known = {field.upper() for field in kind.model_fields}
        own = {each for each in built(overlay).env(name) if each.startswith(prefix)}
        assert {each.removeprefix(prefix) for each in own} <= known, name


@pytest.mark.parametrize("overlay", ["base", "overlays/hpa", "overlays/keda"])
def test_a_pod_that_ends_has_time_for_drain_and_grace(
    built: Callable[[str], Built], overlay: str
) -> None:
    pods = built(overlay)
    for name, kind in SETTINGS.items():
        fields: dict[str, Any] = kind.model_fields
        set_grace = pods.env(name).get(f"{compose_name(name).upper()}_GRACE_SECONDS")
        grace = float(set_grace or fields["grace_seconds"].default)
        drain = fields["drain_seconds"].default
        assert drain + grace + 5 <= pods.pod(name)["terminationGracePeriodSeconds"], name
    entrypoint = (ROOT / "deploy" / "envoy" / "entrypoint.sh").read_text()
    drained = re.search(r"DRAIN_SECONDS:-(\d+)", entrypoint)
    assert drained
    sleep = pods.container("envoy")["lifecycle"]["preStop"]["sleep"]["seconds"]
    period = pods.pod("envoy")["terminationGracePeriodSeconds"]
    assert sleep + int(drained[1]) + 5 <= period
    assert compose()["envoy"]["stop_grace_period"] == f"{period}s"


def test_a_rolling_update_takes_no_pod_before_another_is_ready(base: Built) -> None:
    for name, workload in base.workloads().items():
        if workload["kind"] == "Deployment":
            strategy = workload["spec"]["strategy"]["rollingUpdate"]
            assert strategy == {"maxSurge": 1, "maxUnavailable": 0}, name
            # Envoy looks up names and asks for health each second.
            assert workload["spec"]["minReadySeconds"] >= 2, name
        budget = base.one("PodDisruptionBudget", name)["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"] == workload["spec"]["selector"]


def test_selectors_find_their_pods(built: Callable[[str], Built]) -> None:
    for overlay in ("overlays/demo", "overlays/tls"):
        objects = built(overlay)
        labels = {
            name: each["spec"]["template"]["metadata"]["labels"]
            for name, each in objects.workloads().items()
        }
        for service in objects.all("Service"):
            wanted = service["spec"]["selector"].items()
            found = [name for name, own in labels.items() if wanted <= own.items()]
            assert len(found) == 1, service["metadata"]["name"]
            names = {each["name"] for each in objects.container(found[0])["ports"]}
            assert {each["targetPort"] for each in service["spec"]["ports"]} <= names


def test_autoscalers_watch_metrics_that_there_are(built: Callable[[str], Built]) -> None:
    metrics = set(re.findall(r"^\| `(\w+)` \| gauge", documented_metrics(), re.MULTILINE))
    hpa, keda = built("overlays/hpa"), built("overlays/keda")
    targets: dict[str, set[tuple[str, str]]] = {}
    for each in hpa.all("HorizontalPodAutoscaler"):
        targets[each["metadata"]["name"]] = {
            (metric["pods"]["metric"]["name"], metric["pods"]["target"]["averageValue"])
            for metric in each["spec"]["metrics"]
        }
        assert each["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 600
    assert {name for each in targets.values() for name, _ in each} == {
        "text_waiting_answers",
        "text_waiting_texts",
        "vision_open_streams",
    }
    assert {name for each in targets.values() for name, _ in each} <= metrics
    for each in keda.all("ScaledObject"):
        triggers = each["spec"]["triggers"]
        queried = set()
        for trigger in triggers:
            match = re.match(r"sum\((\w+)\{", trigger["metadata"]["query"])
            assert match
            queried.add((match[1], trigger["metadata"]["threshold"]))
        assert queried == targets[each["metadata"]["name"]]
    for objects in (hpa, keda):
        for name in targets:
            assert "replicas" not in objects.workloads()[name]["spec"]


def documented_metrics() -> str:
    return (ROOT / "docs" / "operations.md").read_text()


def test_monitoring_is_that_of_compose(built: Callable[[str], Built]) -> None:
    objects = built("overlays/monitoring")
    folder = ROOT / "deploy" / "monitoring"
    for path in (folder / "rules").glob("*.yml"):
        rule = objects.one("PrometheusRule", f"ml-services-{path.stem}")
        assert rule["spec"] == yaml.safe_load(path.read_text())
    dashboards = {each.name: each.read_text() for each in (folder / "grafana/dashboards").iterdir()}
    assert objects.config("ml-services-dashboards") == dashboards
    jobs = {
        each["job_name"]: each
        for each in yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    }
    monitors = {each["metadata"]["name"]: each["spec"] for each in objects.all("PodMonitor")}
    scraped = {*monitors["ml-services"]["selector"]["matchExpressions"][0]["values"], "envoy"}
    for name in scraped:
        labels = objects.workloads()[name]["spec"]["template"]["metadata"]["labels"]
        job = jobs.pop(labels["app.kubernetes.io/component"])
        (port,) = (
            each["containerPort"]
            for each in objects.container(name)["ports"]
            if each["name"] == "metrics"
        )
        assert job["dns_sd_configs"][0]["port"] == port
    assert set(jobs) == {"prometheus"}
    (endpoint,) = monitors["envoy"]["podMetricsEndpoints"]
    (relabeling,) = endpoint["metricRelabelings"]
    of_compose = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"][4]
    assert endpoint["path"] == of_compose["metrics_path"]
    assert relabeling["regex"] == of_compose["metric_relabel_configs"][0]["regex"]


def test_the_cuda_overlay_takes_a_card_and_the_cuda_image(built: Callable[[str], Built]) -> None:
    text = built("overlays/gpu").container("text")
    cuda = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]["text"]
    assert text["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert text["image"].split(":")[0] == cuda["image"].split(":")[0]
    variables = {each["name"]: each.get("value") for each in text["env"]}
    assert cuda["environment"].items() <= variables.items()


def test_the_gateway_routes_what_envoy_routes(built: Callable[[str], Built]) -> None:
    """By one route: two kinds of routes of one host exclude each other."""
    objects = built("overlays/gateway")
    assert not objects.all("GRPCRoute")
    (route,) = objects.all("HTTPRoute")
    (rule,) = route["spec"]["rules"]
    listed = {each["path"]["value"] for each in rule["matches"]}
    envoy = objects.config("envoy-config-1")["envoy.yaml"]
    routed = {f"/ml.{name}/" for name in re.findall(r"/ml\\*\.(\w+Service)/", envoy)}
    assert routed | {"/grpc.health.v1.Health/", "/v1/", "/v2/"} == listed
    (backend,) = rule["backendRefs"]
    (service,) = (objects.one("Service", backend["name"]),)
    ports = {port["port"]: port for port in service["spec"]["ports"]}
    assert ports[backend["port"]]["appProtocol"] == "kubernetes.io/h2c"
