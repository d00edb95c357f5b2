"""The models that are wanted, in an SQLite file, so that a restart forgets none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS wishes (
    model_id TEXT PRIMARY KEY,
    pipeline_type TEXT NOT NULL,
    options TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Wish:
    """A model that is wanted, with the canonical name of its pipeline type."""

    model_id: str
    pipeline_type: str
    options: Mapping[str, str] = field(default_factory=dict)


class WishStore:
    """Wishes by model id. Each change is on disk when its call returns.

    An async context manager. A file that is no database is put aside and an empty one begun, since
    the application asks for its models again anyway.

    Args:
        path: the SQLite file; its folder is made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    async def __aenter__(self) -> Self:
        self._connection = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._run(lambda connection: connection.close())

    async def get(self, model_id: str) -> Wish | None:
        """The wish for a model."""
        return next((wish for wish in await self.all() if wish.model_id == model_id), None)

    async def all(self) -> list[Wish]:
        """All wishes, in the order of their ids."""
        rows = await self._run(
            lambda connection: connection.execute(
                "SELECT model_id, pipeline_type, options FROM wishes ORDER BY model_id"
            ).fetchall()
        )
        return [Wish(model_id, kind, json.loads(options)) for model_id, kind, options in rows]

    async def put(self, wish: Wish) -> None:
        """Writes a wish down, in place of an earlier one for the same model."""
        row = wish.model_id, wish.pipeline_type, json.dumps(dict(wish.options))
        await self._run(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO wishes VALUES (?, ?, ?)", row
            )
        )

    async def remove(self, model_id: str) -> bool:
        """Takes a wish back; whether there was one."""
        cursor = await self._run(
            lambda connection: connection.execute(
                "DELETE FROM wishes WHERE model_id = ?", (model_id,)
            )
        )
        return cursor.rowcount > 0

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def locked() -> T:
            with self._lock:
                return work(self._connection)

        return await asyncio.to_thread(locked)

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # not to be opened or locked: the file may be fine
            broken = self._path.with_suffix(".broken")
            log.error("the record of wanted models is damaged; begun anew", exc_info=error)
            self._path.replace(broken)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(_SCHEMA)
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            raise
        return connection
