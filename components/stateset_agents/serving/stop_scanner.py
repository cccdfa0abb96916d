"""Stop texts: where an answer that is being sampled has to end.

Owns that no part of a stop text is ever let through. It knows neither tokens nor events.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through until the first of the stop texts, which may lie across several pieces.

    What could be the beginning of one is held back until it is known not to be.

    Attributes:
        found: True once a stop text was met; nothing is let through after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """What may be sent now."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back for nothing."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that begins `stop` and is not all of it."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
