"""The load options that models of every pipeline type have: which file of the model, and whose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from shared.model_ids import ModelId, at_revision, check_file_path, check_revision

FILE = "file"
REVISION = "revision"


@dataclass(frozen=True)
class FileOptions:
    """The options `file` and `revision` of a load.

    Attributes:
        file: the path of the model's large file in the model; empty for the usual name.
        revision: of the model: a branch, a tag or a commit; empty for the provider's default.
    """

    file: str = ""
    revision: str = ""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Self:
        """The two among the options of a load; the others are left out.

        Raises:
            InvalidPathError: the file is not inside the model's folder.
            InvalidArgumentError: the revision is not valid.
        """
        file, revision = options.get(FILE, ""), options.get(REVISION, "")
        if file:
            check_file_path(file, f"options[{FILE}]")
        return cls(file, check_revision(revision, f"options[{REVISION}]"))

    def files_of(self, model_id: ModelId) -> ModelId:
        """The id of the files, see `at_revision`."""
        return at_revision(model_id, self.revision)
