"""The parts of a stack: its folders, its processes, their commands and environments."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from stack.callers import CallerFiles
from stack.envoy_config import EnvoyOptions
from stack.ports import (
    EVERYWHERE,
    LOOPBACK,
    Ports,
)

# Where callers come in.
_CALLER_PORTS = ("envoy", "envoy_tls", "envoy_mtls")

ROOT = Path(__file__).resolve().parent.parent

# For every service. OpenMP that spins collapses on shared cores; the malloc thresholds double the
# throughput of large messages; models come through the file provider, never from a hub.
_SERVICE_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class ChildSpec:
    """One process of the stack.

    Attributes:
        name: its name in messages and of its log file.
        command: program and arguments.
        environment: variables set on top of the runner's own.
        port: where it serves; it is up once this port accepts connections.
        metrics_port: of its Prometheus page, 0 for none.
        cluster: its name in Envoy, whose health checks say whether it is serving; "" for none.
        host: where it is reached.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    port: int
    metrics_port: int = 0
    cluster: str = ""
    host: str = LOOPBACK


@dataclass(frozen=True)
class Layout:
    """Ports, folders and addresses of one stack.

    Attributes:
        ports: all of its ports.
        models: the model folder, with `text/` for the file provider and `vision/`.
        run_dir: logs, caches and state.
        provider_address: host:port of the file provider.
        own_provider: whether the stack starts that file provider itself.
        state_file: where `status` and `down` find the stack.
        envoy_options: Envoy's optional parts.
        models_file: the file of desired models; None for none.
    """

    ports: Ports
    models: Path
    run_dir: Path
    provider_address: str
    own_provider: bool
    state_file: Path
    envoy_options: EnvoyOptions = field(default_factory=EnvoyOptions)
    models_file: Path | None = None

    @property
    def logs(self) -> Path:
        """The folder of the log files, NAME.log each."""
        return self.run_dir / "logs"

    @property
    def envoy_config(self) -> Path:
        """The rewritten envoy.yaml (JSON is YAML)."""
        return self.run_dir / "envoy.json"

    @property
    def envoy_host(self) -> str:
        """Where the ports for callers are reached from this machine."""
        address = self.envoy_options.address
        return LOOPBACK if address == EVERYWHERE else address

    def caller_files(self) -> CallerFiles:
        """The files of keys and names that Envoy reads, beside its configuration."""
        options = self.envoy_options
        return CallerFiles(self.run_dir / "callers", options.callers, options.caller_kinds)

    def warning(self) -> str:
        """What is dangerous about the ports for callers; empty if nothing is."""
        options = self.envoy_options
        if self._on_loopback() or "api_keys" in options.caller_kinds:
            return ""
        return (
            f"the ports for callers listen on {options.address} without API keys: whoever reaches "
            "them may load, use and unload models (see --callers)"
        )

    def _on_loopback(self) -> bool:
        return self.envoy_options.address.startswith("127.")

    def used_ports(self) -> list[int]:
        """The ports that must be free."""
        return [port for name, port in vars(self.ports).items() if name not in self._unused()]

    def _unused(self) -> set[str]:
        unused = set() if self.own_provider else {"provider"}
        return unused if self.envoy_options.tls else unused | {"envoy_tls", "envoy_mtls"}

    def addresses(self) -> dict[str, str]:
        """Name to host:port of everything that listens."""
        named = {
            name: f"{self.envoy_host if name in _CALLER_PORTS else LOOPBACK}:{port}"
            for name, port in vars(self.ports).items()
            if name not in self._unused()
        }
        return named | {"provider": self.provider_address}

    def children(self, envoy_binary: Path) -> list[ChildSpec]:
        """All processes, in the order of their start."""
        provider = [self._provider()] if self.own_provider else []
        return [self._envoy(envoy_binary), *provider, *self._services()]

    def _envoy(self, binary: Path) -> ChildSpec:
        command = (
            *(str(binary), "-c", str(self.envoy_config)),
            *("--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"),
            *("--file-flush-interval-msec", "500"),
            *("--drain-time-s", "2", "--drain-strategy", "immediate"),
        )
        return ChildSpec(
            *("envoy", command, {}, self.ports.envoy, self.ports.envoy_metrics),
            host=self.envoy_host,
        )

    def _provider(self) -> ChildSpec:
        root, port = str(self.models / "text"), str(self.ports.provider)
        command = (sys.executable, "-m", "tools.dev_provider", "--root", root, "--port", port)
        return ChildSpec("provider", command, {"PYTHONUNBUFFERED": "1"}, self.ports.provider)

    def _services(self) -> list[ChildSpec]:
        ports = self.ports
        own_files = f"{LOOPBACK}:{ports.model_mgmt}"
        model_mgmt = {
            "TEXT_ADDRS": f"{LOOPBACK}:{ports.text}",
            "VISION_ADDRS": f"{LOOPBACK}:{ports.vision}",
            "CACHE_DIR": str(self.run_dir / "cache" / "model_mgmt"),
            "STATE_DIR": str(self.run_dir / "state"),
            "FILE_PROVIDER_ADDR": self.provider_address,
        }
        if self.models_file:
            model_mgmt["MODELS_FILE"] = str(self.models_file)
        text = {
            "CACHE_DIR": str(self.run_dir / "cache" / "text"),
            "STORE_DIR": model_mgmt["CACHE_DIR"],
            "FILE_PROVIDER_ADDR": own_files,
        }
        vision = {
            "CACHE_DIR": str(self.run_dir / "cache" / "vision"),
            "STORE_DIR": model_mgmt["CACHE_DIR"],
            "FILE_PROVIDER_ADDR": own_files,
            "MODEL_DIR": str(self.models / "vision"),
        }
        http = {
            "TEXT_ADDR": f"{LOOPBACK}:{ports.text}",
            "MODEL_MGMT_ADDR": own_files,
            # For who sits at this machine; elsewhere it is asked for.
            "PAGE": os.environ.get("HTTP_PAGE", str(self._on_loopback()).lower()),
        }
        return [
            _service("model_mgmt", ports.model_mgmt, ports.model_mgmt_metrics, model_mgmt),
            _service("text", ports.text, ports.text_metrics, text),
            _service("vision", ports.vision, ports.vision_metrics, vision),
            _service("http", ports.http, ports.http_metrics, http),
        ]


def _service(cluster: str, port: int, metrics_port: int, settings: dict[str, str]) -> ChildSpec:
    """A service; `settings` get its prefix, such as TEXT_."""
    settings = settings | {
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
        # Envoy has drained by the time a service is told to stop.
        "DRAIN_SECONDS": "0",
        "GRACE_SECONDS": "5",
    }
    prefixed = {f"{cluster.upper()}_{name}": value for name, value in settings.items()}
    name = f"{cluster}_svc"
    return ChildSpec(
        name=name,
        command=(sys.executable, "-m", name),
        environment=_SERVICE_ENVIRONMENT | prefixed,
        port=port,
        metrics_port=metrics_port,
        cluster=cluster,
    )
