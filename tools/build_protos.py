"""Generates the Python code of `protos/` into the package `ml`.

Hatchling runs it when the project is installed or built; `python tools/build_protos.py` runs it by
hand (`make proto`).
"""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def generate(root: Path = ROOT) -> None:
    """Replaces `ml/`: messages, services and type stubs.

    Raises:
        SystemExit: protoc rejected a file; it has printed the reason.
    """
    from grpc_tools import protoc

    source, target = root / "protos", root / "ml"
    shutil.rmtree(target, ignore_errors=True)
    files = sorted(str(path) for path in source.rglob("*.proto"))
    includes = [f"-I{source}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, *files]):
        sys.exit("protoc failed")
    for package in (target, target / "internal"):
        (package / "__init__.py").write_text('"""Generated from protos/."""\n')
        (package / "py.typed").touch()


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, without the build backend
    pass
else:

    class ProtoHook(BuildHookInterface):  # type: ignore[type-arg]
        """Runs `generate` before the files of the wheel are collected."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Called by hatchling at the start of each build, editable ones included."""
            generate(Path(self.root))


if __name__ == "__main__":
    generate()
