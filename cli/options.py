"""Options of several commands."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.names import complete_model

# The most that an int32 and a uint64 of a request hold.
INT32, UINT64 = (1 << 31) - 1, (1 << 64) - 1

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="ML_MODEL",
        autocompletion=complete_model,
        help="Id of a model. [default: the loaded one, if there is one that fits]",
    ),
]
