"""The tools of a request, as far as reading calls needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tools:
    """The tools that a model may call.

    Attributes:
        schemas: the JSON Schemas of their arguments, by name.
    """

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Their names."""
        return frozenset(self.schemas)

    def takes_text(self, tool: str, parameter: str) -> bool:
        """Whether an argument can be nothing but a string."""
        properties = self.schemas.get(tool, {}).get("properties")
        schema = properties.get(parameter) if isinstance(properties, Mapping) else None
        if not isinstance(schema, Mapping):
            return False
        kind = schema.get("type")
        if kind is None and isinstance(choices := schema.get("enum"), list) and choices:
            return all(isinstance(choice, str) for choice in choices)
        return kind in ("string", ["string"])
