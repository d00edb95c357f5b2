"""What the images contain, and what they do not."""

from __future__ import annotations

import os
import re

import pytest
from docker.models.images import Image
from testcontainers.core.docker_client import DockerClient

from tests.containers.containers import IMAGES, SERVICES, image_name

pytestmark = pytest.mark.usefixtures("images")

BUILDERS = "gcc cc c++ g++ clang cpp ld as make cmake rustc cargo go nvcc git curl wget"
# A service's own part, on top of Python's image; text has PyTorch for its conversions.
MAX_MEGABYTES = {
    "model_mgmt": 60,
    "provider": 60,
    "models": 200,
    "vision": 750,
    "http": 200,
    "text": 1600,
}
# It fetches packages with pip.
HAS_PIP = {"models"}
PIP = "/opt/venv/lib/python3.11/site-packages/pip"
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.11-slim-bookworm")


@pytest.fixture(params=IMAGES)
def service(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def image(service: str) -> Image:
    return DockerClient().client.images.get(image_name(service))


def run(service: str, script: str) -> list[str]:
    """Runs a shell script as root in a container without a network; the lines that it printed."""
    output = DockerClient().client.containers.run(
        image_name(service), [script], entrypoint=["sh", "-c"], user="0", network_mode="none",
        remove=True,
    )  # fmt: skip
    return output.decode().split("\n")[:-1]


def test_it_runs_as_a_numbered_user_and_says_what_it_is(service: str, image: Image) -> None:
    config = image.attrs["Config"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", config["User"])
    if service != "models":  # it ends, and takes no calls
        assert config["Healthcheck"]["Test"][0] == "CMD"
    for label in ("title", "description", "version", "licenses"):
        assert config["Labels"][f"org.opencontainers.image.{label}"]


def test_nothing_in_it_builds_anything(service: str) -> None:
    assert run(service, f"for tool in {BUILDERS}; do command -v $tool; done; true") == []


def test_it_holds_no_caches_and_no_installer(service: str) -> None:
    script = (
        "ls -d /root/.cache/* /var/lib/apt/lists/*_* 2>/dev/null;"
        " find /opt /root /home /tmp /var/cache -name '*.whl' 2>/dev/null;"
        f" ls -d {PIP} 2>/dev/null; true"
    )
    assert run(service, script) == ([PIP] if service in HAS_PIP else [])


def test_it_holds_no_secrets(service: str, image: Image) -> None:
    environment = image.attrs["Config"]["Env"]
    assert not [line for line in environment if re.search("TOKEN=|SECRET|PASSW|_KEY=", line)]
    history = " ".join(layer["CreatedBy"] for layer in image.history())
    assert "PIP_" not in history  # an index may have a password in its address
    keys = "-name id_rsa -o -name '*.pem' -o -name '*.key' -o -name '.env' -o -name .netrc"
    names = f"{keys} -o -name .pypirc -o -name .git -o -name '*.p12'"
    script = (
        f"find / -xdev \\( {names} \\) -print 2>/dev/null | while read -r path; do"
        ' case $path in *.pem|*.key) grep -l "PRIVATE KEY" "$path";; *) echo "$path";; esac;'
        " done; true"
    )
    assert run(service, script) == []


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_its_own_service_alone(service: str) -> None:
    found = run(service, "cd /opt/venv/lib/python3.11/site-packages; ls -d *_svc tests tools; true")
    assert found == [f"{service}_svc"]


@pytest.mark.parametrize("service", MAX_MEGABYTES)
def test_it_is_small(service: str) -> None:
    images = DockerClient().client.images
    size = images.get(image_name(service)).attrs["Size"]
    base = images.get(PYTHON_IMAGE).attrs["Size"]
    assert (size - base) / 1e6 <= MAX_MEGABYTES[service]


def test_opencv_has_no_windows() -> None:
    code = "import cv2; print(cv2.getBuildInformation())"
    lines = run("vision", f"python -c '{code}'")
    assert [line.split()[-1] for line in lines if line.strip().startswith("GUI:")] == ["NONE"]
