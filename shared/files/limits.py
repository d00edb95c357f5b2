"""How large those files of a model may be that are parsed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from shared.errors import InvalidModelError

# A configuration has some kilobytes; one with 20,000 labels has half a megabyte.
JSON_BYTES = 4 << 20
# The largest tokenizer.json of a published model has 35 MB.
VOCABULARY_BYTES = 64 << 20

# Called with the bytes fetched and the total bytes, 0 while unknown.
Progress = Callable[[int, int], None]

_WEIGHTS = (".safetensors", ".tflite", ".litertlm")
# Files that list tokens, merges or tensors.
_VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "target_vocab.json"),
    "model.safetensors.index.json",
)
_VOCABULARY_SUFFIXES = (".txt", ".model", ".spm", ".codes", ".tokenizer")


@dataclass(frozen=True)
class FileLimits:
    """Sizes in bytes.

    Attributes:
        json_bytes: of a configuration, a chat template, and of any file that is not named below.
        vocabulary_bytes: of a file that lists tokens, merges or tensors.
    """

    json_bytes: int = JSON_BYTES
    vocabulary_bytes: int = VOCABULARY_BYTES

    def of(self, name: str) -> int | None:
        """The largest size of a file; None for weights, which are not parsed."""
        path = PurePosixPath(name)
        if path.suffix in _WEIGHTS:
            return None
        if path.name in _VOCABULARIES or path.suffix in _VOCABULARY_SUFFIXES:
            return self.vocabulary_bytes
        return self.json_bytes

    def watch(self, name: str, on_progress: Progress | None = None) -> Progress:
        """A callback for `ModelFiles.fetch` that ends the fetch of a file that is too large.

        It raises what `check` does as soon as the provider has told the size.
        """

        def watched(fetched: int, total: int) -> None:
            self.check(name, total)
            if on_progress:
                on_progress(fetched, total)

        return watched

    def check(self, name: str, size: int) -> None:
        """Raises InvalidModelError if a file is larger than it may be."""
        limit = self.of(name)
        if limit is not None and size > limit:
            raise InvalidModelError(
                f"{name[:80]} has {size} bytes; the limit is {limit}",
                metadata={"limit": str(limit)},
            )


DEFAULT_LIMITS = FileLimits()
