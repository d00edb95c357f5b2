"""The manifests as kustomize builds them, and what is read out of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.stack import ROOT

Object = dict[str, Any]

# Where the folder with a cluster for tests is, if it is there.
CLUSTER = ROOT.parent / "shared" / "kubernetes"
SERVICES = ("envoy", "model-mgmt", "text", "vision", "http")


@dataclass(frozen=True)
class Built:
    """The objects of a kustomization."""

    objects: list[Object]

    def all(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Object:
        (found,) = (each for each in self.all(kind) if each["metadata"]["name"] == name)
        return found

    def config(self, name: str) -> dict[str, str]:
        """The data of the ConfigMap with this name before its hash."""
        (found,) = (
            each
            for each in self.all("ConfigMap")
            if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", each["metadata"]["name"])
        )
        data: dict[str, str] = found.get("data", {}) | found.get("binaryData", {})
        return data

    def workloads(self) -> dict[str, Object]:
        """Deployments and StatefulSets by name."""
        return {each["metadata"]["name"]: each for each in self.all("Deployment", "StatefulSet")}

    def pod(self, name: str) -> Object:
        spec: Object = self.workloads()[name]["spec"]["template"]["spec"]
        return spec

    def container(self, name: str) -> Object:
        (found,) = self.pod(name)["containers"]
        container: Object = found
        return container

    def env(self, name: str) -> dict[str, str]:
        """The variables of a container, those from the settings filled in."""
        settings = self.config("settings")
        variables = {}
        for each in self.container(name).get("env", ()):
            source = each.get("valueFrom", {}).get("configMapKeyRef")
            variables[each["name"]] = settings[source["key"]] if source else each["value"]
        return variables


def build(kubectl: str, folder: Path) -> Built:
    """What `kubectl kustomize` makes of a folder."""
    result = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Built([each for each in yaml.load_all(result.stdout, loader) if each])


def compose() -> dict[str, Object]:
    """The services of docker-compose.yml, with the defaults of its variables."""
    text = (ROOT / "docker-compose.yml").read_text()
    # The innermost first: one default has another one in it.
    before = ""
    while before != text:
        before, text = text, re.sub(r"(?<!\$)\$\{\w+(?::[-+]([^${}]*))?\}", r"\1", text)
    services: dict[str, Object] = yaml.safe_load(text)["services"]
    return services


def mebibytes(size: str) -> int:
    """Of a size as Compose or Kubernetes writes it."""
    match = re.fullmatch(r"(\d+)(m|Mi|g|Gi)", size)
    assert match, size
    return int(match[1]) * (1024 if match[2] in ("g", "Gi") else 1)


def probes(container: Object) -> Iterator[tuple[str, Object]]:
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield kind, container[kind]
