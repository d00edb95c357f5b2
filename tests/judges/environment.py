"""The environment of the judges: clients and suites that others wrote, pinned apart from ours."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT
from tools.uv_settings import of_this_pip

LOCK = ROOT / "requirements" / "judges.txt"


def judges_python() -> Path:
    """The environment's Python. It is made once for each state of its lock, which takes a minute.

    Raises:
        CalledProcessError: it cannot be made, such as without a package index; its output has why.
    """
    folder = ROOT / "run" / "judges" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        uv = (sys.executable, "-m", "uv")
        _run(*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder))
        install = ("--quiet", "--no-deps", "--require-hashes", "-r", str(LOCK))
        _run(*uv, "pip", "install", "--python", str(python), *install)
        ready.touch()
    return python


def _run(*command: str) -> None:
    environment = of_this_pip() | os.environ
    subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=600, env=environment
    )
