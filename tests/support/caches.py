"""Caches of model files that are full from the start.

A first load of the chat model takes half a gigabyte through two services, and each hashes and
writes it. A stack whose test is not about that begins as one that has loaded the models before.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path, PurePosixPath

from shared.files.cache import CacheEntry
from shared.files.disk import hash_file
from shared.files.space import STATE_FOLDER
from shared.model_ids import parse_model_id


def fill(cache: Path, models: Path, model_id: str) -> None:
    """Puts a model's files into a cache, as links: no service writes into a cached file.

    Args:
        cache: the folder of one service.
        models: where ORG/NAME/FILE are.
        model_id: ORG/NAME.
    """
    source = models / model_id
    (cache / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    for file in (path for path in source.rglob("*") if path.is_file()):
        path = PurePosixPath(file.relative_to(source))
        entry = CacheEntry(cache, parse_model_id(model_id), path)
        place = entry.place()
        if place.exists():
            continue  # another stack began in this folder
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:  # another file system
            shutil.copyfile(file, place)
        entry.record(place, _hash(file))


@functools.cache
def _hash(file: Path) -> str:
    return hash_file(file)
