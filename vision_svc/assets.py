"""Which model file each task runs on: the models folder's, unless a loaded model replaces it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ModelNotLoadedError

if TYPE_CHECKING:
    from vision_svc.detector import VisionTask
    from vision_svc.options import Options


class Assets:
    """Finds a task's file. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Path] = {}
        self._lock = threading.Lock()

    def find(self, task: VisionTask, options: Options) -> Path:
        """The model file for these options.

        Raises:
            ModelNotLoadedError: there is no such file.
        """
        with self._lock:
            if path := self._loaded.get(task.name):
                return path
        name = task.asset(options).file
        path = self._folder / name
        if not path.is_file():
            raise ModelNotLoadedError(
                f"the model of {task.name}, {name}, is not in the models folder: `make models` or "
                f"the compose service `models` fetches it, or load one with LoadModel and "
                f"pipeline_type {task.name!r}",
                metadata={"asset": name},
            )
        return path

    def replace(self, task: VisionTask, path: Path | None) -> None:
        """Makes new instances of this task use `path`; None restores the models folder's file."""
        with self._lock:
            if path:
                self._loaded[task.name] = path
            else:
                self._loaded.pop(task.name, None)
