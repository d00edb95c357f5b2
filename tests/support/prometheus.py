"""A real Prometheus for tests, from the PATH or from the Debian package."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import free_port
from tests.support.stack import ROOT, wait_for

MONITORING = ROOT / "deploy" / "monitoring"


class MissingError(Exception):
    """There is no Prometheus on this machine; the message says why."""


@dataclass(frozen=True)
class Tools:
    """Where the two programs are."""

    prometheus: Path
    promtool: Path


def find_tools(folder: Path) -> Tools:
    """The programs of the PATH, else those of the Debian package, unpacked in `folder`.

    Nothing is installed: the package would start a service.

    Raises:
        MissingError: there is neither.
    """
    found = shutil.which("prometheus"), shutil.which("promtool")
    if found[0] and found[1]:
        return Tools(Path(found[0]), Path(found[1]))
    if not shutil.which("apt-get"):
        raise MissingError("prometheus and promtool are not installed")
    folder.mkdir(parents=True, exist_ok=True)
    download = ["apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", "prometheus"]
    if subprocess.run(download, cwd=folder, capture_output=True).returncode and os.getuid() == 0:
        subprocess.run(["apt-get", "-qq", "update"], capture_output=True)
        subprocess.run(download, cwd=folder, capture_output=True)
    package = next(folder.glob("prometheus_*.deb"), None)
    if package is None:
        raise MissingError("prometheus is not installed, and apt-get cannot download it")
    subprocess.run(["dpkg", "-x", package, folder], check=True, capture_output=True)
    return Tools(folder / "usr/bin/prometheus", folder / "usr/bin/promtool")


class Prometheus:
    """A running one."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of the API; an error of Prometheus fails the test."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that an expression gives now."""
        data = self.ask("query", query=expression)
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]


def configuration(targets: Mapping[str, str]) -> dict[str, Any]:
    """The project's own, with fixed addresses for the jobs of `targets` and a second's interval."""
    config: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), "1s")
    config["rule_files"] = [str(MONITORING / pattern) for pattern in config["rule_files"]]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    config["scrape_configs"] = [jobs[name] for name in targets]
    for name, address in targets.items():
        del jobs[name]["dns_sd_configs"]
        jobs[name]["static_configs"] = [{"targets": [address]}]
    return config


@contextlib.contextmanager
def run_prometheus(tools: Tools, folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `targets`, job to address, once it answers."""
    port = free_port()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(targets)))
    command = [
        *(tools.prometheus, f"--config.file={folder / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        running = Prometheus(port)

        def ready() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            return running.ready()

        wait_for("the start of Prometheus", ready)
        yield running
    finally:
        process.kill()
        process.wait()
