"""The options of LoadModel as older clients write them."""

from __future__ import annotations

from collections.abc import Mapping

from shared.errors import UnknownOptionError
from shared.file_options import FILE, REVISION

REMOTE_CODE = "trust_remote_code"
# Older names of options, and what they are called now.
OLDER_NAMES = {"torch_dtype": "dtype"}


def usual_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options under the names that the services know.

    An empty `file` or `revision` is none. `torch_dtype` is `dtype`, with or without "torch." before
    its value. `trust_remote_code` may be false, which it always is.

    Raises:
        UnknownOptionError: code of the model's own is to be trusted, or an option stands there
            under both names.
    """
    usual: dict[str, str] = {}
    for name, value in options.items():
        if name == REMOTE_CODE:
            if value.strip().lower() not in ("false", ""):
                raise UnknownOptionError(
                    f"option {REMOTE_CODE} must be false, not {value[:40]!r}: code that comes with "
                    "a model is never run",
                    field=f"options[{REMOTE_CODE}]",
                )
            continue
        if name in (FILE, REVISION) and not value:
            continue
        now = OLDER_NAMES.get(name, name)
        if now != name and now in options:
            raise UnknownOptionError(
                f"options {name} and {now} are the same; only one may be given",
                field=f"options[{name}]",
            )
        usual[now] = value.removeprefix("torch.") if now != name else value
    return usual
