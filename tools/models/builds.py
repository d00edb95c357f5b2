"""Runs a build step of `assets.toml`. Imports nothing heavy: the step's module is loaded here, in
the process that builds."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path


def run_build(step: str, inputs: Mapping[str, Path], out: Path) -> None:
    """Call `module.function` of this package with the inputs' paths and the folder to write to."""
    module, _, function = step.partition(".")
    getattr(import_module(f"tools.models.{module}"), function)(inputs, out)
