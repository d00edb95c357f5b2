"""Runs cargo in the workspace of the Rust client: `python -m tools.cargo COMMAND [OPTIONS]`.

With `--lint` before the command, Clippy compiles, and its warnings are errors.

Crates come from the registry at the versions in Cargo.lock or, without a network, from a vendored
tree where a folder beside this project has one. Build output goes to CARGO_TARGET_DIR, which is
clients/rust/target by default. Needs only Python's standard library.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WORKSPACE = REPOSITORY / "clients" / "rust"
# Prints the path of a cargo configuration for vendored crates; unpacks them the first time.
UNPACK = REPOSITORY.parent / "shared" / "cargo" / "unpack.sh"
# What `cargo clippy -- -D warnings` sets for a check. For a build or a test, Clippy compiles the
# workspace's own crates, and all others are compiled once, where `cargo clippy` would check each of
# them a second time.
LINTED = {
    "RUSTC_WORKSPACE_WRAPPER": "clippy-driver",
    "CLIPPY_ARGS": "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
    "CARGO_INCREMENTAL": "0",  # it costs time, and pays where a build is repeated
}
# Commands that need no crates and reject the options that say where crates are.
WITHOUT_CRATES = ("fmt", "--version")


class NoCargoError(Exception):
    """The Rust client cannot be built here; the message says why in one line."""


def target_dir() -> Path:
    """The folder of the build output."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or WORKSPACE / "target").absolute()


@functools.cache
def source_options() -> tuple[str, ...]:
    """The options that say where crates come from; fetches the crates.

    Raises:
        NoCargoError: cargo or the crates are not available.
    """
    if not shutil.which("cargo"):
        raise NoCargoError("cargo is not installed")
    options: tuple[str, ...] = ("--locked",)
    if UNPACK.exists():
        unpacked = subprocess.run((str(UNPACK),), capture_output=True, text=True, check=False)
        if unpacked.returncode:
            raise NoCargoError(f"the vendored crates cannot be unpacked: {_last_line(unpacked)}")
        options += ("--offline", "--config", unpacked.stdout.strip())
    fetched = subprocess.run(
        ("cargo", "fetch", *options), cwd=WORKSPACE, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        raise NoCargoError(f"the crates cannot be fetched: {_last_line(fetched)}")
    return options


def command(arguments: Sequence[str]) -> list[str]:
    """The command that runs cargo with the crates available here; run it in `WORKSPACE`.

    Raises:
        NoCargoError: cargo or the crates are not available.
    """
    name, *rest = arguments
    options = () if name in WITHOUT_CRATES else source_options()
    return ["cargo", name, *options, *rest]


def environment(*, lint: bool = False) -> dict[str, str]:
    """The environment to run cargo in.

    Args:
        lint: Clippy compiles the crates of the workspace, and its warnings are errors.
    """
    return os.environ | {"CARGO_TARGET_DIR": str(target_dir())} | (LINTED if lint else {})


def build_load_generator() -> Path:
    """Builds the load generator of the benchmarks (the first time takes minutes).

    Raises:
        NoCargoError: it cannot be built.
    """
    build = command(("build", "--release", "--package", "ml-loadgen"))
    built = subprocess.run(
        build, cwd=WORKSPACE, env=environment(), capture_output=True, text=True, check=False
    )
    if built.returncode:
        raise NoCargoError(f"it does not build: {_last_line(built)}")
    return target_dir() / "release" / "loadgen"


def _last_line(process: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"status {process.returncode}"


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if lint := arguments[:1] == ["--lint"]:
        del arguments[0]
    if not arguments:
        sys.exit(__doc__)
    try:
        run = command(arguments)
    except NoCargoError as error:
        sys.exit(f"the Rust client cannot be built here: {error}")
    os.chdir(WORKSPACE)
    os.execvpe(run[0], run, environment(lint=lint))  # noqa: S606  # this process becomes cargo


if __name__ == "__main__":
    main()
