"""Trouble with a server, and since when."""

from __future__ import annotations

from datetime import UTC, datetime


class Trouble:
    """Sentence about what is wrong with a server, with the server's name and the start time."""

    def __init__(self, server: str, text: str | None = None) -> None:
        self.server = server
        self._text, self._since = text, datetime.now(UTC)

    @property
    def text(self) -> str | None:
        """Sentence about what is wrong; None while nothing is wrong."""
        return self._text

    @text.setter
    def text(self, text: str | None) -> None:
        if self._text is None:
            self._since = datetime.now(UTC)
        self._text = text

    @property
    def since(self) -> datetime:
        """Time when the trouble began."""
        return self._since

    @property
    def told(self) -> str | None:
        """`text` with the server's name and the start time in UTC; None while nothing is wrong."""
        today = self._since.date() == datetime.now(UTC).date()
        since = f"{self._since:{'%H:%M:%S' if today else '%Y-%m-%d %H:%M:%S'}}"
        return self._text and f"{self.server}, since {since} UTC: {self._text}"
