"""What the images are built from, without an engine."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]


def test_a_build_is_sent_what_it_copies() -> None:
    """.dockerignore names what is sent; an image that copies more cannot be built."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {PurePosixPath(line.removeprefix("!")) for line in lines if line.startswith("!")}
    copies = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE
    )
    copied = {PurePosixPath(path) for paths in copies for path in paths.split()}
    assert PurePosixPath("http_svc") in copied
    assert not {path for path in copied if sent.isdisjoint({path, *path.parents})}
