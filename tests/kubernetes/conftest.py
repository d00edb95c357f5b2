"""Fixtures for tests of deploy/kubernetes. `make test-kubernetes` runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.kubernetes.manifests import CLUSTER, Built, build
from tools.kubernetes import MANIFESTS, write_all

_CACHE = Path(os.environ.get("KUBERNETES_TEST_CACHE", Path.home() / ".cache" / "kubernetes-test"))


@pytest.fixture(scope="session")
def cluster_tools() -> Path:
    """The folder with a cluster for tests, whose programs are unpacked."""
    if not (CLUSTER / "cluster.sh").exists():
        pytest.skip(f"there is no {CLUSTER}, which has a cluster and the schemas")
    if not (_CACHE / "bin" / "kubectl").exists():
        result = subprocess.run([CLUSTER / "cluster.sh", "fetch"], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return CLUSTER


@pytest.fixture(scope="session")
def kubectl(request: pytest.FixtureRequest) -> str:
    """The path of kubectl, which has kustomize in it."""
    if found := shutil.which("kubectl"):
        return found
    request.getfixturevalue("cluster_tools")
    return str(_CACHE / "bin" / "kubectl")


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the manifests with what is written into them."""
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(MANIFESTS, folder)
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def built(kubectl: str, manifests: Path) -> Callable[[str], Built]:
    """Builds a kustomization, such as "base" or "overlays/demo", once."""
    return cache(lambda name: build(kubectl, manifests / name))


@pytest.fixture(scope="session")
def base(built: Callable[[str], Built]) -> Built:
    return built("base")
