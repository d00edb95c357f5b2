"""Pins every dependency with its hashes into `requirements/`, one file a service and one for all.

PyTorch is left out: its CPU build comes from elsewhere and is pinned in the Makefile and the
Dockerfiles. The files are complete, so they are installed with `--no-deps`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    "model_mgmt": ("model-mgmt", "otel"),
    "text": ("text", "otel"),
    "vision": ("vision", "otel"),
    "models": ("models",),
    "dev": ("model-mgmt", "text", "vision", "otel", "tools", "dev"),
}
# What torch needs beside itself, and what must not come in by another package's wish.
TORCH_NEEDS = "filelock\nfsspec\njinja2\nnetworkx\nsetuptools\nsympy\ntyping-extensions\n"
OVERRIDES = 'torch; sys_platform == "never"\ntorchvision; sys_platform == "never"\n'
# A server needs no windows: the same OpenCV without them is a third of the size.
OVERRIDES += 'opencv-contrib-python; sys_platform == "never"\n'
HEADLESS = "opencv-python-headless\n"
# optimum-intel does not run with a newer hub client; 1.3 of the other refuses Python 3.11.
OVERRIDES += "huggingface-hub<1.22\nbackports-strenum<1.3\n"
# What fetches the models needs MediaPipe's schemas, and nothing that MediaPipe itself imports.
NOT_FOR_MODELS = ("absl-py", "matplotlib", "sounddevice")
HEADER = "# Made by `make lock` from pyproject.toml; complete, install with --no-deps.\n"


def lock(name: str, extras: tuple[str, ...], folder: Path) -> None:
    """Writes `requirements/NAME.txt` from the project's dependencies and `extras`."""
    overrides, additions = folder / "overrides.txt", folder / "additions.txt"
    unused = NOT_FOR_MODELS if name == "models" else ()
    overrides.write_text(
        OVERRIDES + "".join(f'{package}; sys_platform == "never"\n' for package in unused)
    )
    additions.write_text(
        (TORCH_NEEDS if "text" in extras else "") + (HEADLESS if "vision" in extras else "")
    )
    output = ROOT / "requirements" / f"{name}.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--overrides", str(overrides), "--upgrade", "--no-emit-index-url"]
    command += ["--no-emit-package", "torch", "--no-emit-package", "torchvision"]
    command += [argument for extra in extras for argument in ("--extra", extra)]
    command += ["pyproject.toml", str(additions), "-o", str(output)]
    subprocess.run(command, check=True, cwd=ROOT)
    output.write_text(HEADER + output.read_text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name, extras in TARGETS.items():
            lock(name, extras, Path(temporary))
            print(f"requirements/{name}.txt")
