"""The Rust client's programs, built once for all tests, by Clippy as `make rust` has it."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from tests.support.stack import ROOT
from tools.cargo import WORKSPACE, command, environment, target_dir

MANIFEST = str(WORKSPACE / "Cargo.toml")


@functools.cache
def has(component: str) -> bool:
    """Whether cargo has a component, such as "clippy"."""
    run = ("cargo", component, "--version")
    return subprocess.run(run, capture_output=True, check=False).returncode == 0


def cargo(*arguments: str, **variables: str) -> str:
    """Runs cargo and returns what it writes to stdout.

    Raises:
        AssertionError: it failed.
        NoCargoError: cargo or the crates are not available.
    """
    result = subprocess.run(
        command(arguments),
        cwd=ROOT,
        env=environment(lint=has("clippy")) | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def programs() -> Path:
    """The folder of all programs, built without optimisation.

    All targets are built, as `make rust` does: a package alone would be built with other features
    of the crates that it needs, which then are compiled again.

    Raises:
        AssertionError: they do not build.
        NoCargoError: cargo or the crates are not available.
    """
    cargo("build", "--manifest-path", MANIFEST, "--workspace", "--all-targets")
    return target_dir() / "debug"
