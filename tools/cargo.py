"""cargo for the Rust client: `python -m tools.cargo COMMAND [OPTIONS]` runs it in clients/rust.

Crates come from the registry as Cargo.lock names them, or without a network from a vendored tree
where a folder beside this project has one. What is built goes to CARGO_TARGET_DIR, which is
clients/rust/target unless the environment says otherwise. Needs nothing but Python.
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
CRATE = REPOSITORY / "clients" / "rust"
# Prints the cargo configuration of a vendored tree, which it unpacks the first time.
UNPACK = REPOSITORY.parent / "shared" / "cargo" / "unpack.sh"
# Commands that take no crates, and not the options that say where crates are.
WITHOUT_CRATES = ("fmt", "--version")


class NoCargoError(Exception):
    """The Rust client cannot be built here; the message says why in a line."""


def target_dir() -> Path:
    """The folder of what is built."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or CRATE / "target").absolute()


@functools.cache
def source_options() -> tuple[str, ...]:
    """The options that say where crates come from; they are there afterwards.

    Raises:
        NoCargoError: there is no cargo, or the crates cannot be had.
    """
    if not shutil.which("cargo"):
        raise NoCargoError("cargo is not installed")
    options: tuple[str, ...] = ("--locked",)
    if UNPACK.exists():
        unpacked = subprocess.run((str(UNPACK),), capture_output=True, text=True, check=False)
        if unpacked.returncode:
            raise NoCargoError(f"the vendored crates were not unpacked: {_last_line(unpacked)}")
        options += ("--offline", "--config", unpacked.stdout.strip())
    fetched = subprocess.run(
        ("cargo", "fetch", *options), cwd=CRATE, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        raise NoCargoError(f"the crates cannot be had: {_last_line(fetched)}")
    return options


def command(arguments: Sequence[str]) -> list[str]:
    """The command that runs cargo with the crates there are; to be run in `CRATE`.

    Raises:
        NoCargoError: there is no cargo, or the crates cannot be had.
    """
    name, *rest = arguments
    options = () if name in WITHOUT_CRATES else source_options()
    return ["cargo", name, *options, *rest]


def environment() -> dict[str, str]:
    """The environment to run it in."""
    return os.environ | {"CARGO_TARGET_DIR": str(target_dir())}


def build_load_generator() -> Path:
    """The load generator of the benchmarks, built if need be (the first time takes minutes).

    Raises:
        NoCargoError: it cannot be built.
    """
    build = command(("build", "--release", "--features", "loadgen", "--bin", "loadgen"))
    built = subprocess.run(
        build, cwd=CRATE, env=environment(), capture_output=True, text=True, check=False
    )
    if built.returncode:
        raise NoCargoError(f"it does not build: {_last_line(built)}")
    return target_dir() / "release" / "loadgen"


def _last_line(process: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"status {process.returncode}"


def main() -> None:
    """Entry point."""
    if not sys.argv[1:]:
        sys.exit(__doc__)
    try:
        run = command(sys.argv[1:])
    except NoCargoError as error:
        sys.exit(f"the Rust client cannot be built here: {error}")
    os.chdir(CRATE)
    os.execvpe(run[0], run, environment())  # noqa: S606  # this process becomes cargo


if __name__ == "__main__":
    main()
