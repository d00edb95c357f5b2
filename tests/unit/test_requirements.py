"""What a service imports is in its own lock: an image has no more than that."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ("shared", "model_mgmt_svc", "text_svc", "vision_svc", "http_svc", "ml", "tools")
# Each lock, the folder of what it is for, and modules that the search must have found there.
LOCKS = {
    "model_mgmt": ("model_mgmt_svc", {"grpc", "pydantic"}),
    "text": ("text_svc", {"grpc", "pydantic"}),
    "vision": ("vision_svc", {"grpc", "pydantic"}),
    "http": ("http_svc", {"starlette", "uvicorn", "grpc", "pydantic"}),
    "models": ("tools/models", {"httpx", "pydantic", "mediapipe"}),
}
# Imported where the environment asks for traces, with an error that says what to install.
OPTIONAL = {"shared.telemetry.otel"}


def _imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, those for types alone left out."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next(
        (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None
    )


def _third_parties(folder: str) -> dict[str, str]:
    """Top-level modules that the code in a folder imports, and which module imports each first."""
    waiting = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in ROOT.joinpath(folder).rglob("*.py")
    ]
    seen, found = set(waiting), {}
    while waiting:
        module = waiting.pop()
        path = _file(module)
        if path is None:
            continue
        for name in _imports(path):
            top = name.partition(".")[0]
            if top in OWN:
                if name not in seen and name not in OPTIONAL:
                    seen.add(name)
                    waiting.append(name)
            elif top not in sys.stdlib_module_names:
                found.setdefault(top, module)
    return found


def _name(distribution: str) -> str:
    """A distribution's name as locks write it."""
    return re.sub("[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize("service", LOCKS)
def test_a_service_imports_what_its_lock_has(service: str) -> None:
    lock = (ROOT / "requirements" / f"{service}.txt").read_text()
    locked = {_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    locked.add("torch")  # the build chooses which
    distributions = packages_distributions()
    folder, imported = LOCKS[service]
    third = _third_parties(folder)
    assert imported <= third.keys()
    for module, importer in third.items():
        names = set(map(_name, distributions.get(module, [module])))
        assert names & locked, (
            f"{importer} imports {module}, which requirements/{service}.txt lacks"
        )
