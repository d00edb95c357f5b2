"""A test's own Envoy, started by the container's entry point."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from stack.envoy import (
    Admin,
    find_binary,
)
from stack.envoy_config import write_container_configs
from tests.support.stack import ROOT, wait_for
from tools.descriptor_set import descriptor_set

ENTRY_POINT = ROOT / "deploy" / "envoy" / "entrypoint.sh"

# Starts the entry point with a configuration, and waits until the port accepts.
Start = Callable[[dict[str, Any]], subprocess.Popen[bytes]]


def entry_point(
    folder: Path, config: dict[str, Any] | None, *arguments: str, **environment: str
) -> subprocess.Popen[bytes]:
    """The entry point as a process group, with a configuration or those that the image has."""
    source = folder / "source"
    write_container_configs(source)
    if config:
        (source / "envoy.yaml").write_text(yaml.safe_dump(config))
    (folder / "ml.binpb").write_bytes(descriptor_set())
    settings = {
        "ENVOY": str(find_binary()),
        "CONFIG_DIR": str(source),
        "DESCRIPTORS": str(folder / "ml.binpb"),
        "RUN_DIR": str(folder),
    }
    with (folder / "envoy.log").open("wb") as log:
        return subprocess.Popen(
            [ENTRY_POINT, "--disable-hot-restart", *arguments],
            env=os.environ | settings | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_upstream(admin: Admin) -> None:
    """Waits until Envoy reaches model_mgmt_svc."""

    def healthy() -> bool:
        with contextlib.suppress(OSError):  # the page does not respond in time
            return "model_mgmt" in admin.healthy_clusters()
        return False

    wait_for("a healthy upstream", healthy)


def nobody_connected(admin: Admin) -> bool:
    """Whether no client is connected; false if the page does not respond in time."""
    with contextlib.suppress(OSError):
        return admin.active_connections() == 0
    return False
