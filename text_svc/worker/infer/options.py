"""The base of all options of a request."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class NoOptions(BaseModel):
    """The options of a request to a pipeline that takes none; the base of all others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
