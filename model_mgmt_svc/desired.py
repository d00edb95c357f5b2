"""The desired models, in a JSON file, so that they survive a restart of this service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from shared.errors import InvalidArgumentError
from shared.files.disk import write_json
from shared.model_ids import ModelId, parse_model_id

log = logging.getLogger(__name__)

# The record of earlier versions, beside the one of now: an SQLite file with a table `wishes`.
OLD_RECORD = "wishes.db"


@dataclass(frozen=True)
class DesiredModel:
    """A model that should be loaded, with the canonical name of its pipeline type."""

    model_id: ModelId
    pipeline_type: str
    options: Mapping[str, str] = field(default_factory=dict)


_Models = dict[ModelId, DesiredModel]
_RECORD = TypeAdapter(dict[str, list[DesiredModel]])


class DesiredModels:
    """The desired models by id. Each change is on disk when its call returns.

    An async context manager. A file that is not valid is kept aside, with the suffix ".broken", and
    the service starts without desired models: the application loads its models again anyway.

    Args:
        path: the JSON file; its folder is created if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._models: _Models = {}
        self._lock = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._models = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._changes:  # those of cancelled callers
            await asyncio.wait(self._changes)

    def get(self, model_id: ModelId) -> DesiredModel | None:
        """The desired model of this id, if there is one."""
        return self._models.get(model_id)

    def all(self) -> list[DesiredModel]:
        """All desired models, ordered by id."""
        return [model for _, model in sorted(self._models.items())]

    async def put(self, model: DesiredModel) -> None:
        """Makes a model desired, in place of an earlier entry with its id."""
        await self._change(lambda models: models.update({model.model_id: model}))

    async def remove(self, model_id: ModelId) -> bool:
        """Makes a model no longer desired; returns whether it was."""
        was_desired = model_id in self._models
        await self._change(lambda models: models.pop(model_id, None))
        return was_desired

    async def _change(self, change: Callable[[_Models], object]) -> None:
        """Writes a change to the disk and then makes it, even if the caller is cancelled."""

        async def write() -> None:
            async with self._lock:
                models = dict(self._models)
                change(models)
                if models != self._models:
                    await asyncio.to_thread(self._write, models.values())
                    self._models = models

        task = asyncio.create_task(write())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    def _write(self, models: Iterable[DesiredModel]) -> None:
        write_json(self._path, {"models": [asdict(model) for model in models]}, durable=True)

    def _open(self) -> _Models:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return self._import_old()
        try:
            return _by_id(_RECORD.validate_json(text)["models"])
        except (ValueError, KeyError, InvalidArgumentError) as error:
            _keep_aside(self._path, error)
            return {}

    def _import_old(self) -> _Models:
        """Takes over the record of an earlier version, once: afterwards it has another name."""
        path = self._path.with_name(OLD_RECORD)
        if not path.is_file():
            return {}
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                rows = connection.execute("SELECT model_id, pipeline_type, options FROM wishes")
                models = _by_id(
                    DesiredModel(ModelId(model_id), pipeline_type, json.loads(options))
                    for model_id, pipeline_type, options in rows
                )
        except (sqlite3.DatabaseError, ValueError, InvalidArgumentError) as error:
            if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
                raise  # it cannot be opened or is locked: the file may be fine
            _keep_aside(path, error)
            return {}
        self._write(models.values())
        path.replace(path.with_suffix(".imported"))
        log.info("imported the desired models of an earlier version", extra={"count": len(models)})
        return models


def _by_id(models: Iterable[DesiredModel]) -> _Models:
    """The models by their canonical ids; in a file edited by hand they may be written otherwise.

    Raises:
        InvalidArgumentError: an id is not valid.
    """
    ids = ((parse_model_id(model.model_id), model) for model in models)
    return {model_id: replace(model, model_id=model_id) for model_id, model in ids}


def _keep_aside(path: Path, error: Exception) -> None:
    broken = path.with_suffix(".broken")
    path.replace(broken)
    log.error(
        "the record of the desired models is not valid: kept aside, starting without it",
        extra={"kept_as": broken.name},
        exc_info=error,
    )
