"""Lists of assets made for a test, and sources to fetch them from."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.models.fetch import Fetcher, Outcome
from tools.models.manifest import Manifest
from tools.models.progress import PlainReporter

CONTENT = b"weights" * 1000
CLOSED_PORT = "http://127.0.0.1:9"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def asset(
    name: str = "model.tflite", *sources: dict[str, Any], content: bytes = CONTENT, **more: Any
) -> dict[str, Any]:
    file = {"path": name, "size": len(content), "sha256": sha256(content)}
    entry = {"name": name, "kind": "vision", "folder": "vision", "files": [file]}
    return entry | {"sources": list(sources)} | more


def listed(*assets: dict[str, Any], packages: dict[str, Any] | None = None) -> Manifest:
    return Manifest.model_validate({"packages": packages or {}, "assets": assets})


class Lines(PlainReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


def fetch(
    root: Path, entries: Manifest, lines: Lines | None = None, **options: Any
) -> list[Outcome]:
    with Fetcher(entries, root, lines or Lines(), **options) as fetcher:
        return fetcher.fetch(entries.select([], None))


def left_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine and the folder that it serves."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@pytest.fixture
def offline_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is the only place where pip looks."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def wheel(path: Path, members: dict[str, bytes]) -> bytes:
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


def pypi(data: bytes) -> dict[str, Any]:
    return {"registry": "pypi", "version": "1.0", "size": len(data), "sha256": sha256(data)}
