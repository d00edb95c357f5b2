"""Stop strings, found even if they are split between tokens, and never sent."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes on the text of one generation up to the first stop string.

    Text that may turn out to be the beginning of a stop string is held back.

    Args:
        stops: the stop strings; none is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Returns the text to send after `text` arrived, and whether a stop string was found."""
        if not self._stops or not text:
            return text, False
        text = self._held + text
        # The stop string that ends first counts, so the result does not depend on the tokens.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        kept = self._beginning(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def rest(self) -> str:
        """The text that is held back, for a generation that ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest suffix of `text` that a stop string begins with."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - size :]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
