"""Keeps the desired models in line with the file of desired models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from prometheus_client import Gauge

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.life_options import DEFAULT_LIFE, LIFE_OPTIONS
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.model_says import Said
from model_mgmt_svc.models_file import (
    FileModel,
    ModelsFileError,
    line_error,
    parse_models_file,
    read_models_file,
)
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.resolve import resolve
from shared.errors import InvalidArgumentError, ServiceError
from shared.file_options import FILE, FileOptions
from shared.files.client import ModelFiles
from shared.model_ids import ModelId

log = logging.getLogger(__name__)

# Between two attempts to find the type of a model, or to unload one.
RETRY_SECONDS = 5.0

REFUSED = Gauge(
    "model_mgmt_models_file_refused",
    "1 while the file of desired models cannot be used and its last good content counts.",
)


@dataclass(frozen=True)
class Waiting:
    """A model of the file that is not desired yet, and why; tried again at `retry_at`."""

    pipeline_type: str
    reason: str
    retry_at: float

    @property
    def next_try_seconds(self) -> float:
        """Seconds until it is tried again."""
        return max(self.retry_at - asyncio.get_running_loop().time(), 0.0)


class FileModels:
    """Looks at the file periodically, and makes desired what stands in it.

    A file that is not valid is refused as a whole, told in the log, and the last good one counts.
    What a caller does to a model of the file stays until its entry changes or the service starts
    again. A model that is removed from the file is unloaded, unless a caller asked for it, too.

    Args:
        path: the file; None if there is none, which counts as an empty one.
        files: for the types of models.
        desired: the record of the desired models; it knows what came from the file.
        lifecycle: unloads models.
        reconciler: loads what is desired.
        interval: seconds between two looks.

    Attributes:
        refused: why the file is refused, with the line; empty if it is not.
    """

    def __init__(
        self,
        path: Path | None,
        files: ModelFiles,
        desired: DesiredModels,
        lifecycle: Lifecycle,
        reconciler: Reconciler,
        *,
        interval: float,
    ) -> None:
        self._path = path
        self._files = files
        self._desired = desired
        self._lifecycle = lifecycle
        self._reconciler = reconciler
        self._interval = interval
        self.refused = ""
        # The last good content, and one that is not valid.
        self._good: bytes | None = None
        self._bad: bytes | None = None
        # Of the last good file; and those that the record does not show yet, or still shows.
        self._models: Mapping[ModelId, FileModel] = {}
        self._todo: set[ModelId] = set()
        self._waiting: dict[ModelId, Waiting] = {}

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("the file of desired models cannot be followed")
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Takes over what has changed in the file, and tries again what has not worked."""
        try:
            await self._read()
        except ModelsFileError as error:
            if str(error) != self.refused:
                log.error(
                    "the file of desired models is refused: the last good one counts",
                    extra={"file": str(self._path), "error": str(error)},
                )
            self.refused = str(error)
        REFUSED.set(bool(self.refused))
        now = asyncio.get_running_loop().time()
        for model_id in sorted(self._todo):
            waiting = self._waiting.get(model_id)
            if waiting is None or now >= waiting.retry_at:
                await self._try(model_id)

    def waiting(self) -> dict[ModelId, Waiting]:
        """The models of the file that cannot be made desired yet."""
        return dict(self._waiting)

    async def _read(self) -> None:
        content = await asyncio.to_thread(read_models_file, self._path) if self._path else b""
        if content == self._good:
            self.refused = ""
        if content in (self._good, self._bad):
            return
        try:
            parsed = await asyncio.to_thread(parse_models_file, content)
        except ModelsFileError:
            self._bad = content
            raise
        models = {model.model_id: model for model in parsed}
        changed = {
            model_id
            for model_id, model in models.items()
            if model_id not in self._models or model.entry != self._models[model_id].entry
        }
        for model_id in changed:
            await self._check(models[model_id], content)
        from_file = {each.model_id for each in self._desired.all() if each.file_entry is not None}
        self.refused = ""
        self._good = content
        self._models = models
        self._todo = changed | (self._todo & models.keys()) | (from_file - models.keys())
        self._waiting = {}
        if self._path:
            log.info("the file of desired models is read", extra={"models": len(models)})

    async def _check(self, model: FileModel, content: bytes) -> None:
        """Refuses the file for options that a service does not take, as far as it can be asked."""
        for said in model.asked.types()[:1]:
            try:
                await self._lifecycle.check(
                    DesiredModel(model.model_id, said.pipeline.name, model.options)
                )
            except InvalidArgumentError as error:
                raise line_error(error, content.decode().split("\n"), model.line) from None

    async def _try(self, model_id: ModelId) -> None:
        if self._lifecycle.is_loading(model_id):
            return  # which changes its entry, too
        model = self._models.get(model_id)
        try:
            if model:
                await self._put(model)
            else:
                await self._remove(model_id)
        except ServiceError as error:
            kind = next((each.pipeline.name for each in _types(model)), "")
            retry_at = asyncio.get_running_loop().time() + RETRY_SECONDS
            if self._waiting.get(model_id, Waiting("", "", 0)).reason != error.message:
                log.warning(
                    "a model of the file of desired models is not taken over",
                    extra={"model_id": model_id, "error": error.message},
                )
            self._waiting[model_id] = Waiting(kind, error.message, retry_at)
        else:
            # A caller's load that is in flight takes the model back if it fails.
            if not self._lifecycle.is_loading(model_id):
                self._todo.discard(model_id)
            self._waiting.pop(model_id, None)
            self._reconciler.wake()

    async def _put(self, model: FileModel) -> None:
        """Makes a model desired as the file says, with a reload where its load options changed.

        One that a caller asked for keeps the options that it was loaded with.
        """
        before = self._desired.get(model.model_id)
        if before and before.file_entry == model.entry:
            return
        life = model.change.of(before.life if before and before.asked else DEFAULT_LIFE)
        if before and _of_load(before.file_entry) == _of_load(model.entry):
            await self._desired.put(replace(before, life=life, file_entry=model.entry))
            return
        source = FileOptions.of(model.options).files_of(model.model_id)
        found = await resolve(self._files, source, model.asked)
        model.change.check(model.model_id, found.pipeline.service)
        options = dict(model.options) | ({FILE: found.file} if found.file else {})
        wanted = DesiredModel(
            model.model_id,
            found.pipeline.name,
            options,
            model.asked.alias_of(found.pipeline),
            life=life,
            asked=False,
            file_entry=model.entry,
        )
        await self._lifecycle.check(wanted)
        before = self._desired.get(model.model_id)
        if before and (before.asked or _loads_as(before) == _loads_as(wanted)):
            if _loads_as(before) != _loads_as(wanted):
                log.warning(
                    "a model keeps the options that a caller loaded it with",
                    extra={"model_id": model.model_id},
                )
            await self._desired.put(replace(before, life=life, file_entry=model.entry))
            return
        self._desired.check_names(model.model_id, life.aliases)
        if before:
            await self._lifecycle.unload(model.model_id)
        await self._desired.put(wanted)
        self._reconciler.forgive(model.model_id)
        log.info("a model of the file is desired", extra={"model_id": model.model_id})

    async def _remove(self, model_id: ModelId) -> None:
        model = self._desired.get(model_id)
        if model is None or model.file_entry is None:
            return
        if model.asked:
            await self._desired.put(replace(model, file_entry=None))
            return
        await self._lifecycle.unload(model_id)
        log.info("a model is no longer in the file: unloaded", extra={"model_id": model_id})


def _types(model: FileModel | None) -> Iterator[Said]:
    yield from model.asked.types() if model else ()


def _of_load(entry: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """The part of an entry that needs a reload where it changes."""
    if entry is None:
        return None
    return {name: value for name, value in entry.items() if name not in LIFE_OPTIONS}


def _loads_as(model: DesiredModel) -> tuple[str, Mapping[str, str]]:
    return model.pipeline_type, model.options
