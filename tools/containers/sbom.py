"""Writes what is installed: `python -m tools.containers.sbom [FOLDER]`.

One CycloneDX file for each image, and one, `native`, for the environment of `make setup` on a
system such as this, in `out/sbom/` or FOLDER: names, versions and hashes of all packages that the
locks pin. uv fetches the generator into an environment of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = "cyclonedx-bom==7.5.0"
# Each bill of materials, and the locks that are installed together.
LOCKS = {
    "model_mgmt": ("model_mgmt",),
    "text": ("text", "torch"),
    "vision": ("vision",),
    "http": ("http",),
    "models": ("models",),
    "native": ("dev", "torch"),
}


def requirements(name: str) -> str:
    """The packages of one bill of materials, as a lock; without those for other systems."""
    locks = ((ROOT / "requirements" / f"{lock}.txt").read_text() for lock in LOCKS[name])
    text = re.sub(r"^#.*\n", "", "".join(locks), flags=re.MULTILINE)
    entries = text.replace("\\\n", " ").splitlines()
    # The images are Linux's wherever they are built.
    system = sys.platform if name == "native" else "linux"
    kept = [entry for entry in entries if _installed(Requirement(_pin(entry)), system)]
    return "\n".join([*kept, ""])


def _pin(entry: str) -> str:
    return entry.partition(" --hash")[0]


def _installed(requirement: Requirement, system: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"sys_platform": system})


def write(name: str, folder: Path) -> int:
    """Writes FOLDER/NAME.cdx.json and returns the number of packages in it."""
    target = folder / f"{name}.cdx.json"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.write(requirements(name))
        lock.flush()
        command = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "--from", GENERATOR]
        command += ["cyclonedx-py", "requirements", lock.name, "--output-reproducible"]
        command += ["--pyproject", "pyproject.toml", "-o", str(target)]
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return len(json.loads(target.read_text())["components"])


def main() -> None:
    """Entry point."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "out" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    for name in LOCKS:
        print(f"{folder / name}.cdx.json: {write(name, folder)} packages")


if __name__ == "__main__":
    main()
