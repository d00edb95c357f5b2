"""Which models may be loaded for the calls that ask for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shared.model_ids import ModelId

# As other settings are read.
_YES, _NO = ("true", "1", "yes", "on"), ("", "false", "0", "no", "off")
_PATTERN = re.compile(r"[A-Za-z0-9_./*?\[\]!-]+\Z")


@dataclass(frozen=True)
class AutoLoad:
    """What the setting AUTO_LOAD says.

    Attributes:
        patterns: of the ids of models that may be loaded although nobody has asked for them by
            LoadModel; as in a shell, where "*" also stands for "/".
        on: whether calls load models at all; then an evicted model comes back on call, whatever
            its id.
    """

    patterns: tuple[str, ...] = ()
    on: bool = False

    @classmethod
    def parse(cls, text: str) -> AutoLoad:
        """Reads "true", "false" or patterns separated by commas.

        Raises:
            ValueError: it is something else.
        """
        words = tuple(word.strip() for word in text.split(",") if word.strip())
        if len(words) < 2 and text.strip().lower() in _NO:
            return cls()
        if len(words) == 1 and words[0].lower() in _YES:
            return cls(("*",), on=True)
        for word in words:
            if not _PATTERN.match(word):
                raise ValueError(
                    f"{word[:40]!r} is not a pattern of model ids; AUTO_LOAD must be one of true, "
                    "false, or patterns such as org/*, separated by commas"
                )
        return cls(words, on=True)

    def allows(self, model_id: ModelId) -> bool:
        """Whether a model may be loaded that nobody has asked for."""
        return any(fnmatchcase(model_id, pattern) for pattern in self.patterns)
