"""Pins the images of others by digest: `python -m tools.containers.pin_images`.

Asks each image's registry for the digest of its tag and writes it behind the tag: for the base
images into deploy/Dockerfile, for those that are run as they are into docker-compose.yml. An image
whose registry does not respond keeps what it has. Needs docker's buildx, and no engine.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = (ROOT / "deploy" / "Dockerfile", ROOT / "docker-compose.yml")
# In a Dockerfile `ARG NAME_IMAGE=...`, in a compose file `${NAME_IMAGE:-...}`.
REFERENCE = re.compile(r"(?P<start>_IMAGE(?:=|:-))(?P<tagged>[\w./:-]+)(?:@sha256:\w{64})?")
_SECONDS = 60


class UnknownDigestError(Exception):
    """A registry did not say what a tag means."""


def digest(tagged: str) -> str:
    """What NAME:TAG means at its registry now: the index of all platforms, as `sha256:...`.

    Raises:
        UnknownDigestError: with the reason.
    """
    command = ["docker", "buildx", "imagetools", "inspect", tagged]
    command += ["--format", "{{json .Manifest}}"]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnknownDigestError(str(error)) from error
    if asked.returncode:
        raise UnknownDigestError(asked.stderr.strip().splitlines()[-1])
    return str(json.loads(asked.stdout)["digest"])


def pinned(text: str, ask: Callable[[str], str], say: Callable[[str], None]) -> tuple[str, bool]:
    """A file's text with the digests of now, and whether all of them are known.

    Args:
        text: of a Dockerfile or a compose file.
        ask: gives the digest of NAME:TAG, or raises UnknownDigestError.
        say: takes a line about each image.
    """
    complete = True

    def pin(found: re.Match[str]) -> str:
        nonlocal complete
        tagged = found["tagged"]
        try:
            pin = ask(tagged)
        except UnknownDigestError as error:
            complete = False
            say(f"{tagged}: stays as it is: {error}")
            return found[0]
        say(f"{tagged}: {pin}")
        return f"{found['start']}{tagged}@{pin}"

    return REFERENCE.sub(pin, text), complete


def main() -> None:
    """Entry point."""
    complete = True
    for path in FILES:
        text, known = pinned(path.read_text(), digest, print)
        path.write_text(text)
        complete &= known
    if not complete:
        sys.exit(1)


if __name__ == "__main__":
    main()
