"""The desired models, in a JSON file, so that they survive a restart of this service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from prometheus_client import Counter, Gauge
from pydantic import BaseModel, TypeAdapter, ValidationError

from model_mgmt_svc.lease import Lease
from model_mgmt_svc.life_options import DEFAULT_LIFE, LifeOptions, in_effect
from model_mgmt_svc.old_record import OLD_RECORD, read_old_record
from model_mgmt_svc.record import RecordError, RecordFile, keep_aside
from shared.errors import FailedPreconditionError, InvalidArgumentError
from shared.file_options import REVISION
from shared.model_ids import ModelId, at_revision, parse_model_id
from shared.pipelines import named_pipeline

log = logging.getLogger(__name__)

# How long a call waits for its change to be on the disk; a disk may hang.
SAVE_SECONDS = 5.0
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
# Between two looks whether the record is still as it was written.
_CHECK_SECONDS = 5.0

UNSAVED = Gauge(
    "model_mgmt_unsaved", "1 while the desired models cannot be saved on the disk, otherwise 0."
)
LOST_RECORDS = Counter(
    "model_mgmt_lost_records", "Records of the desired models that could not be used."
)


@dataclass(frozen=True)
class DesiredModel:
    """A model that should be loaded, with the canonical name of its pipeline type.

    Attributes:
        options: those that its replicas get.
        asked_type: the name that a caller gave its type last, if that is another name of it.
        life: the options that are the control plane's own.
        asked: whether a caller of LoadModel asked for it.
        file_entry: what the file of desired models says of it; None if it is not there.
        evicted_why: empty, or why it was taken out of memory until somebody asks for it again, as
            in "to make room for org/name".
        loading: its first load has not ended yet: if that fails, it is no longer desired, also when
            this service died meanwhile.
    """

    model_id: ModelId
    pipeline_type: str
    options: Mapping[str, str] = field(default_factory=dict)
    asked_type: str = ""
    life: LifeOptions = DEFAULT_LIFE
    asked: bool = True
    file_entry: Mapping[str, str] | None = None
    evicted_why: str = ""
    loading: bool = False

    @property
    def evicted(self) -> bool:
        """Whether it was taken out of memory: it is not loaded again unasked."""
        return bool(self.evicted_why)

    @property
    def sources(self) -> tuple[str, ...]:
        """Who asks for it: "api", "file" or both."""
        api = ("api",) if self.asked else ()
        return api if self.file_entry is None else (*api, "file")

    def life_in_effect(self, keep_alive: float) -> LifeOptions:
        """Its options of life, with the default of `keep_alive` and what its service allows."""
        pipeline = named_pipeline(self.pipeline_type)  # None: noted by another version
        return in_effect(self.life, pipeline.service if pipeline else "text", keep_alive)

    @property
    def files_id(self) -> ModelId:
        """The id of its files, which names the revision of its options, see `at_revision`."""
        return at_revision(self.model_id, self.options.get(REVISION, ""))


class _Content(BaseModel):
    """The JSON of the record; its entries are checked one by one.

    Attributes:
        complete: false while models that replicas hold may be missing, since a record was lost.
    """

    models: list[Any]
    complete: bool = True


_Models = dict[ModelId, DesiredModel]
_ENTRY = TypeAdapter(DesiredModel)


class DesiredModels:
    """The desired models by id. Each change is on disk when its call returns, if the disk works.

    A change that cannot be written is made all the same, told in `unsaved` and tried again until
    it is on the disk. A record that cannot be read is kept aside, with the suffix ".broken", and
    rebuilt from what the replicas hold (`adopt`).

    An async context manager.

    Args:
        path: the JSON file; its folder is created if missing.
        lease: allows writing it, `Lease`; None where no other process keeps the same record.

    Attributes:
        complete: whether no model is missing that was desired before a record was lost.
        unsaved: why changes are not on the disk; empty if all are.
    """

    def __init__(self, path: Path, lease: Lease | None = None) -> None:
        self.complete = True
        self.unsaved = ""
        self._lease = lease
        self._file = RecordFile(path, *((lease.check_record,) if lease else ()))
        self._models: _Models = {}
        # Removed while the record is incomplete: a replica that holds one still is freeing it.
        self._removed: set[ModelId] = set()
        self._changes = self._tried = 0  # made so far; made before the last attempt to write
        self._changed = asyncio.Event()
        self._after_write = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self._open()
        self._writer = asyncio.create_task(self._write_changes())
        await self._save()
        return self

    async def __aexit__(self, *_: object) -> None:
        is_mine = not (self._lease and self._lease.lost)
        if is_mine and (self.unsaved or self._tried < self._changes):
            await self._save()  # once more, or what cancelled callers have changed
        self._writer.cancel()
        await asyncio.wait((self._writer,))
        if is_mine and self.unsaved:
            log.error("the desired models are lost with this process: they cannot be saved")

    def get(self, model_id: ModelId) -> DesiredModel | None:
        """The desired model of this id, if there is one."""
        return self._models.get(model_id)

    def model_of(self, name: ModelId) -> ModelId:
        """The model that a caller means by this name: one that has it as an alias, or itself."""
        if name in self._models:
            return name
        return next(
            (each.model_id for each in self._models.values() if name in each.life.aliases), name
        )

    def check_names(self, model_id: ModelId, aliases: Iterable[ModelId]) -> None:
        """Refuses names for a model that others have.

        Raises:
            FailedPreconditionError: its id is another's alias, or an alias another's id or alias.
        """
        for name in (model_id, *aliases):
            other = self.model_of(name)
            if other != model_id and (other != name or name in self._models):
                what = "the id of another model" if other == name else f"an alias of {other!r}"
                raise FailedPreconditionError(
                    f"model {model_id!r} cannot have the name {name!r}, which is {what}"
                )

    def all(self) -> list[DesiredModel]:
        """All desired models, ordered by id."""
        return [model for _, model in sorted(self._models.items())]

    async def put(self, model: DesiredModel) -> None:
        """Makes a model desired, in place of an earlier entry with its id.

        Raises:
            FailedPreconditionError: as `check_names`.
        """
        self.check_names(model.model_id, model.life.aliases)
        if self._models.get(model.model_id) != model:
            self._models[model.model_id] = model
            await self._save()

    async def put_back(self, model: DesiredModel) -> None:
        """Makes a model desired as it was before, without names that others have got since."""
        aliases: list[ModelId] = []
        try:
            self.check_names(model.model_id, ())
            for alias in model.life.aliases:
                with contextlib.suppress(FailedPreconditionError):
                    self.check_names(model.model_id, [alias])
                    aliases.append(alias)
        except FailedPreconditionError as error:
            log.warning("a model is no longer desired", extra={"error": error.message})
            return
        await self.put(replace(model, life=replace(model.life, aliases=tuple(aliases))))

    async def remove(self, model_id: ModelId) -> bool:
        """Makes a model no longer desired; returns whether it was."""
        was_desired = self._models.pop(model_id, None) is not None
        if not self.complete:
            self._removed.add(model_id)
        if was_desired:
            await self._save()
        return was_desired

    async def adopt(self, models: Iterable[DesiredModel]) -> None:
        """Makes models desired that replicas hold, to rebuild a record that was lost.

        Models that are desired already, or were removed since, stay as they are.
        """
        found = {
            model.model_id: model
            for model in models
            if model.model_id not in self._models and model.model_id not in self._removed
        }
        if found:
            self._models |= found
            self._settle_names()
            log.warning(
                "desired models are rebuilt from what the replicas hold",
                extra={"models": sorted(found)},
            )
            await self._save()

    async def rebuilt(self) -> None:
        """Every replica was asked for its models: nothing is missing any more."""
        self.complete = True
        self._removed.clear()
        await self._save()

    async def _save(self) -> None:
        """Waits until all changes so far are on the disk, or cannot be written."""
        self._changes += 1
        change = self._changes
        self._changed.set()
        try:
            async with asyncio.timeout(SAVE_SECONDS), self._after_write:
                await self._after_write.wait_for(lambda: self._tried >= change)
        except TimeoutError:
            self._cannot_save(f"the disk does not answer within {SAVE_SECONDS:g} s")

    async def _write_changes(self) -> None:
        """Writes the newest state after each change, and again after a failure, until cancelled."""
        retry: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry or _CHECK_SECONDS):
                    await self._changed.wait()
            if not (retry or self._changed.is_set()):
                if not await asyncio.to_thread(self._file.is_replaced):
                    continue
                # By one that held the lease before, and was stopped in the middle of a write.
                log.warning("the record of the desired models was replaced: writing it again")
            self._changed.clear()
            changes, content = self._changes, self._content()
            try:
                await asyncio.to_thread(self._file.write, content)
            except (OSError, ValueError) as error:
                self._cannot_save(_why(error))
                retry = min(2 * retry, MAX_RETRY_SECONDS) if retry else FIRST_RETRY_SECONDS
            else:
                retry = None
                self._can_save()
            self._tried = changes
            async with self._after_write:
                self._after_write.notify_all()

    def _cannot_save(self, reason: str) -> None:
        if not self.unsaved:
            log.error(
                "the desired models cannot be saved: they stay in memory, and writing them is "
                "tried again",
                extra={"error": reason, "folder": str(self._file.path.parent)},
            )
        self.unsaved = reason
        UNSAVED.set(1)

    def _can_save(self) -> None:
        if self.unsaved:
            log.info("the desired models are saved again")
        self.unsaved = ""
        UNSAVED.set(0)

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"models": [_entry(model) for model in self._models.values()]}
        # Only then: versions before this one know the other key alone.
        return content if self.complete else content | {"complete": False}

    async def _open(self) -> None:
        try:
            await asyncio.to_thread(self._file.take)
            await asyncio.to_thread(self._read)
        except OSError as error:
            self._lost(self._file.path, _why(error))

    def _read(self) -> None:
        """Reads the record; one that is damaged, or missing, leaves the models incomplete."""
        path, old = self._file.path, self._file.path.with_name(OLD_RECORD)
        try:
            text = self._file.read()
            if text is None:
                self.complete = False
            else:
                content = _Content.model_validate_json(text)
                self.complete = content.complete
                if problem := self._take_entries(content.models):
                    self._put_aside(path, problem)
        except (RecordError, ValidationError, OSError) as error:
            self._put_aside(path, _why(error))
        if not self.complete and old.is_file():
            self._import_old(old)

    def _import_old(self, path: Path) -> None:
        """Takes over the record of an earlier version, once: afterwards it has another name."""
        try:
            problem = self._take_entries(read_old_record(path))
        except RecordError as error:
            problem = str(error)
        except OSError as error:  # it may be fine, and is read at the next start
            self._lost(path, _why(error))
            return
        if problem:
            self._put_aside(path, problem)
            return
        log.info(
            "imported the desired models of an earlier version", extra={"count": len(self._models)}
        )
        self.complete = True
        # If it cannot be written, the writer says so, and the next start imports it again.
        with contextlib.suppress(OSError):
            self._file.write(self._content())
            path.replace(path.with_suffix(".imported"))

    def _take_entries(self, entries: Iterable[Any]) -> str:
        """Makes the valid entries desired; returns what is wrong with the first of the others.

        Their ids are made canonical: in a file edited by hand they may be written otherwise.
        """
        problem = ""
        for entry in entries:
            try:
                model = _ENTRY.validate_python(entry)
                model_id = parse_model_id(model.model_id)
            except (ValidationError, InvalidArgumentError) as error:
                problem = problem or _why(error)
            else:
                self._models.setdefault(model_id, replace(model, model_id=model_id))
        self._settle_names()
        return problem

    def _settle_names(self) -> None:
        """Takes aliases away that mean two models, as a file edited by hand may have them."""
        taken = set(self._models)
        for model_id, model in self._models.items():
            kept = tuple(each for each in model.life.aliases if each not in taken)
            taken |= set(kept)
            if kept != model.life.aliases:
                lost = sorted(set(model.life.aliases) - set(kept))
                log.warning("aliases mean two models", extra={"model_id": model_id, "lost": lost})
                self._models[model_id] = replace(model, life=replace(model.life, aliases=kept))

    def _put_aside(self, path: Path, problem: str) -> None:
        try:
            place = keep_aside(path)
        except OSError as error:
            self._lost(path, f"{problem}; and it cannot be renamed: {_why(error)}")
        else:
            self._lost(path, problem, kept_as=place.name)

    def _lost(self, path: Path, problem: str, **extra: str) -> None:
        self.complete = False
        LOST_RECORDS.inc()
        log.error(
            "the record of the desired models cannot be used: starting with what is valid in it "
            "and with the models that the replicas hold",
            extra={"record": str(path), "error": problem, "kept": len(self._models), **extra},
        )


def _entry(model: DesiredModel) -> dict[str, Any]:
    """A model in the record. Defaults are left out: so earlier versions have written it."""
    entry = asdict(model)
    shown = {each.name: entry[each.name] for each in fields(model) if not _is_default(model, each)}
    if model.life != DEFAULT_LIFE:
        shown["life"] = {
            each.name: entry["life"][each.name]
            for each in fields(model.life)
            if not _is_default(model.life, each)
        }
    return shown | {"options": entry["options"]}


def _is_default(value: object, attribute: Field[Any]) -> bool:
    return bool(getattr(value, attribute.name) == attribute.default)


def _why(error: Exception) -> str:
    """One line about a record that is not valid."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}"[:200] if place else first["msg"][:200]
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)[:200]
