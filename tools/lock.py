"""Pins every dependency with its hashes into `requirements/`, one file a service and one for all.

    python tools/lock.py [--keep]

Takes the newest versions that pyproject.toml allows, or with `--keep` the pinned ones where they
still fit. One set serves every Python and machine of `PYTHONS` and `PLATFORMS`; that each has a
wheel of every pin is checked at the end. PyTorch has files of its own: torch.txt is the CPU build,
from PyTorch's own index (TORCH_INDEX_URL names another), and torch-cuda.txt the CUDA build. Where
that index cannot be reached, torch.txt is kept while its version is that of pyproject.toml. The
files are complete, so they are installed with `--no-deps`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    "model_mgmt": ("model-mgmt", "otel"),
    "text": ("text", "otel"),
    "vision": ("vision", "otel"),
    "http": ("http", "otel"),
    "models": ("models",),
    "envoy": ("envoy",),
    "dev": ("model-mgmt", "text", "vision", "http", "otel", "cli", "tools", "dev"),
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The oldest systems that all wheels run on: Envoy's ask for glibc 2.31 and macOS 15, and
# OpenVINO's for glibc 2.35 on aarch64.
PLATFORMS = ("x86_64-manylinux_2_31", "aarch64-manylinux_2_35", "aarch64-apple-darwin")
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "15.0"}
CHECKS_AT_ONCE = 4
# What torch needs beside itself, and what must not come in because another package asks for it.
TORCH_NEEDS = "filelock\nfsspec\njinja2\nnetworkx\nsetuptools\nsympy\ntyping-extensions\n"
OVERRIDES = 'torch; sys_platform == "never"\ntorchvision; sys_platform == "never"\n'
# A server has no windows: the same OpenCV without them is a third of the size.
OVERRIDES += 'opencv-contrib-python; sys_platform == "never"\n'
# xgrammar asks for the compiler of its kernels for CUDA, 600 MB, and we use none of these.
OVERRIDES += 'triton; sys_platform == "never"\n'
HEADLESS = "opencv-python-headless\n"
# optimum-intel does not run with a newer hub client; 1.3 of the other refuses Python 3.11.
OVERRIDES += "huggingface-hub<1.22\nbackports-strenum<1.3\n"
# What fetches the models needs MediaPipe's schemas, and nothing that MediaPipe itself imports.
NOT_FOR_MODELS = ("absl-py", "matplotlib", "sounddevice")
TORCH_INDEX_URL = "https://download.pytorch.org/whl/cpu"
HEADER = "# Made by `make lock` from pyproject.toml; complete, install with --no-deps.\n"


def lock(name: str, extras: tuple[str, ...], folder: Path, *, keep: bool) -> None:
    """Writes `requirements/NAME.txt` from the project's dependencies and `extras`.

    Raises:
        CalledProcessError: no set of versions fits; uv has said why on stderr.
    """
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
    command += ["--python-version", PYTHONS[0], "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--overrides", str(overrides), "--no-emit-index-url"]
    for package in ("torch", "torchvision", "triton"):
        command += ["--no-emit-package", package]
    command += [] if keep else ["--upgrade"]
    command += [argument for extra in extras for argument in ("--extra", extra)]
    command += ["pyproject.toml", str(additions), "-o", str(output)]
    subprocess.run(command, check=True, cwd=ROOT)
    output.write_text(HEADER + output.read_text())


def torch_version() -> str:
    """The version of PyTorch that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = project["optional-dependencies"]["text"]
    (pin,) = (each for each in text if each.startswith("torch=="))
    return str(pin.partition("==")[2])


def lock_torch(version: str, folder: Path, index: str) -> bool:
    """Writes `requirements/torch.txt`, the CPU build for each system, from PyTorch's index.

    Returns:
        Whether it was made anew; False if the index was not to be had and the pins are of this
        version already.

    Raises:
        SystemExit: the index was not to be had, and the pins are of another version.
    """
    wanted = folder / "torch.in"
    # "+cpu" exists there alone, so no other index can hand out a CUDA build of several GB.
    wanted.write_text(
        f'torch=={version}+cpu ; sys_platform == "linux"\n'
        f'torch=={version} ; sys_platform == "darwin"\n'
    )
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-deps"]
    command += ["--python-version", PYTHONS[0], "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--index-url", index, str(wanted)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    output = ROOT / "requirements" / "torch.txt"
    if made.returncode == 0:
        output.write_text(HEADER + made.stdout)
        return True
    if f"torch=={version}+cpu " not in output.read_text():
        sys.exit(f"requirements/torch.txt cannot be made for torch {version}:\n{made.stderr}")
    return False


def lock_torch_cuda(version: str, folder: Path) -> None:
    """Writes `requirements/torch-cuda.txt`: the ordinary index's build, with CUDA's libraries.

    What requirements/text.txt pins too has the same version there.
    """
    wanted = folder / "torch-cuda.in"
    wanted.write_text(f"torch=={version}\n")
    output = ROOT / "requirements" / "torch-cuda.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", PYTHONS[0], "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--constraints", "requirements/text.txt"]
    command += [str(wanted), "-o", str(output)]
    subprocess.run(command, check=True, cwd=ROOT)
    output.write_text(HEADER + output.read_text())


def lock_judges(*, keep: bool) -> None:
    """Writes `requirements/judges.txt`: clients and suites that judge http_svc in the tests."""
    output = ROOT / "requirements" / "judges.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", PYTHONS[0], "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url"] + ([] if keep else ["--upgrade"])
    command += ["tests/judges/requirements.in", "-o", str(output)]
    subprocess.run(command, check=True, cwd=ROOT)
    output.write_text(HEADER.replace("pyproject.toml", command[-3]) + output.read_text())


def missing_wheels(folder: Path) -> list[str]:
    """Where `requirements/dev.txt`, which holds all pins, cannot be installed from wheels alone.

    Returns:
        A paragraph for each such Python and platform, with uv's reason.
    """

    def check(target: tuple[str, str]) -> str:
        python, platform = target
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--dry-run"]
        command += ["--target", str(folder / "none"), "--no-deps", "--require-hashes"]
        command += ["--python-version", python, "--python-platform", platform]
        command += ["--only-binary", ":all:", "-r", "requirements/dev.txt"]
        checked = subprocess.run(
            command, cwd=ROOT, env=os.environ | MACOS, capture_output=True, text=True, check=False
        )
        return f"Python {python}, {platform}:\n{checked.stderr}" if checked.returncode else ""

    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        return [text for text in pool.map(check, itertools.product(PYTHONS, PLATFORMS)) if text]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Pins all dependencies into requirements/.")
    parser.add_argument("--keep", action="store_true", help="keep pinned versions that still fit")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        for name, extras in TARGETS.items():
            lock(name, extras, Path(temporary), keep=options.keep)
            print(f"requirements/{name}.txt")
        version, index = torch_version(), os.environ.get("TORCH_INDEX_URL", TORCH_INDEX_URL)
        made = lock_torch(version, Path(temporary), index)
        print(f"requirements/torch.txt{'' if made else f' is kept: {index} cannot be reached'}")
        lock_torch_cuda(version, Path(temporary))
        print("requirements/torch-cuda.txt")
        lock_judges(keep=options.keep)
        print("requirements/judges.txt")
        if missing := missing_wheels(Path(temporary)):
            sys.exit("\n".join(["Some pins have no wheel for:", *missing]))
    print(f"every pin has wheels for Python {', '.join(PYTHONS)} on {', '.join(PLATFORMS)}")


if __name__ == "__main__":
    main()
