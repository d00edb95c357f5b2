"""Writes what the manifests of deploy/kubernetes take from the rest of the project.

`python -m tools.kubernetes` writes Envoy's configuration with the names of the Services, the rules
of Prometheus as PrometheusRules, and the dashboards. kustomize reads no file outside of its folder,
and two copies in the repository would come to differ; so `make kubernetes` makes these.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from stack.envoy_config import write_container_configs

_ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = _ROOT / "deploy" / "kubernetes"
_MONITORING = _ROOT / "deploy" / "monitoring"
# Of compose, where a name may have what a Service's may not.
HOSTS = {"model_mgmt": "model-mgmt"}


def write_all(manifests: Path = MANIFESTS) -> None:
    """Writes all of it into a folder of manifests, in place of what an earlier call has written."""
    _write_envoy(_emptied(manifests / "base" / "envoy-config"))
    monitoring = manifests / "components" / "monitoring"
    rules = _emptied(monitoring / "rules")
    for source in sorted((_MONITORING / "rules").glob("*.yml")):
        rule = prometheus_rule(source.stem, yaml.safe_load(source.read_text()))
        (rules / f"{source.stem}.yaml").write_text(yaml.safe_dump(rule, sort_keys=False))
    dashboards = _emptied(monitoring / "dashboards")
    for source in sorted((_MONITORING / "grafana" / "dashboards").glob("*.json")):
        shutil.copyfile(source, dashboards / source.name)


def prometheus_rule(name: str, rules: dict[str, Any]) -> dict[str, Any]:
    """A file of rules as an object of the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"ml-services-{name}"},
        "spec": rules,
    }


def _write_envoy(folder: Path) -> None:
    write_container_configs(folder, HOSTS)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    write_all()
    print(f"written into {MANIFESTS}", file=sys.stderr)
