"""The environment of the judges: clients and suites that others wrote, pinned apart from ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.stack import ROOT
from tools.uv_settings import of_this_pip

JUDGES = Path(__file__).parent
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


def judges_node_modules() -> Path:
    """The folder that has the packages of npm. It is made once for each state of their lock.

    Raises:
        FileNotFoundError: there is no npm.
        CalledProcessError: it cannot be made, such as without npm's registry; its output has why.
    """
    locks = [JUDGES / name for name in ("package.json", "package-lock.json")]
    name = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:16]
    folder = ROOT / "run" / "judges" / name
    ready = folder / ".ready"
    if not ready.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for lock in locks:
            shutil.copy(lock, folder)
        quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--legacy-peer-deps")
        _run("npm", "ci", "--ignore-scripts", *quiet, folder=folder)
        ready.touch()
    return folder


def _run(*command: str, folder: Path = ROOT) -> None:
    environment = of_this_pip() | os.environ
    said: dict[str, Any] = {"capture_output": True, "text": True}
    subprocess.run(command, check=True, cwd=folder, timeout=600, env=environment, **said)
