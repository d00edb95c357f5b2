"""modules.json of sentence-transformers: the parts that a sentence encoder is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.errors import InvalidModelError, InvalidPathError
from shared.model_ids import check_file_path

MODULES = "modules.json"
MAX_MODULES = 32
# What comes first in a model of sentence-transformers: a model of transformers, or a table of
# vectors without one.
TRANSFORMER = "Transformer"
STATIC = "StaticEmbedding"
_LIBRARY = "sentence_transformers."


@dataclass(frozen=True)
class Module:
    """One part, in the order in which a text passes them.

    Attributes:
        type: the class or the module of Python that implements it.
        folder: of its files, in the model's; "" is the model's own.
    """

    type: str
    folder: str

    @property
    def kind(self) -> str:
        """The name of the class if it is one of sentence-transformers, else ""."""
        return self.type.rsplit(".", 1)[-1] if self.type.startswith(_LIBRARY) else ""


def parse_modules(content: Any) -> tuple[Module, ...]:
    """The modules of a parsed modules.json.

    Raises:
        InvalidModelError: it is no list of modules, there are over MAX_MODULES, or a folder is none
            of the model's.
    """
    try:
        modules = [Module(str(each.get("type", "")), _folder(each["path"])) for each in content]
    except (TypeError, KeyError, AttributeError):
        raise InvalidModelError(
            f"{MODULES} is not valid: it is not a list of modules with paths"
        ) from None
    except InvalidPathError as error:
        raise InvalidModelError(f"{MODULES} is not valid: {error.message}") from None
    if len(modules) > MAX_MODULES:
        raise InvalidModelError(
            f"{MODULES} is not valid: it lists {len(modules)} of at most {MAX_MODULES} modules"
        )
    return tuple(modules)


def _folder(path: Any) -> str:
    folder = str(path).removesuffix("/")
    if folder in ("", "."):  # the model's own; model2vec writes the dot
        return ""
    return str(check_file_path(folder))
