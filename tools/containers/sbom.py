"""Writes what each image has installed: `python -m tools.containers.sbom [FOLDER]`.

One CycloneDX file per lock, in `out/sbom/` or FOLDER: names, versions and hashes of all packages.
PyTorch is in no lock: its version is added as the Dockerfile pins it. uv fetches the generator into
an environment of its own.
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
LOCKS = ("model_mgmt", "text", "vision", "models")
_TORCH = re.compile(r"^ARG TORCH=(\S+)$", re.MULTILINE)


def requirements(name: str) -> str:
    """The packages of one image, as a lock file; without those for other systems."""
    lock = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    kept = [entry for entry in entries if _installed(Requirement(entry.split(" --hash")[0]))]
    if name == "text":
        kept += _TORCH.findall((ROOT / "deploy" / "Dockerfile").read_text())
    return "\n".join([*kept, ""])


def _installed(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"})


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
