"""Stop strings: found wherever tokens split them, never sent, held back no longer than needed."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes the text of one answer until one of the stop strings begins.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """What may be sent now that `text` came, and whether a stop string was found."""
        if not self._stops or not text:
            return text, False
        text = self._held + text
        # The one that ends first, whatever the tokens are: the result does not depend on them.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        kept = self._beginning(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def rest(self) -> str:
        """What is held back when the answer has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - size :]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
