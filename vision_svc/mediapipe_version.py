"""Which MediaPipe this service is written for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# `mediapipe_c`, `mediapipe_tasks` and `landmarks` go by private names and by structures in memory
# of this one. With another, they may read what is not there.
WRITTEN_FOR = "1.2.2"


def fault() -> str:
    """A sentence about what is wrong with the installed MediaPipe; empty when nothing is."""
    try:
        found = version("mediapipe")
    except PackageNotFoundError:
        found = ""
    if found == WRITTEN_FOR:
        return ""
    installed = f"mediapipe {found} is installed" if found else "mediapipe is not installed"
    return (
        f"{installed}, and vision_svc reads the memory of {WRITTEN_FOR} directly: "
        "install what requirements/vision.txt pins"
    )
