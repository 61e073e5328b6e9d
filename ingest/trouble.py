"""Trouble with a server, and since when."""

from __future__ import annotations

from datetime import UTC, datetime


class Trouble:
    """A sentence while something is wrong, with the server's name and the time it began."""

    def __init__(self, server: str, text: str | None = None) -> None:
        self.server = server
        self._text, self._since = text, datetime.now(UTC)

    @property
    def text(self) -> str | None:
        """The sentence; None while nothing is wrong."""
        return self._text

    @text.setter
    def text(self, text: str | None) -> None:
        if self._text is None:
            self._since = datetime.now(UTC)
        self._text = text

    @property
    def since(self) -> datetime:
        """The moment it began."""
        return self._since

    @property
    def told(self) -> str | None:
        """The sentence for somebody who does not know which server it is about; time in UTC."""
        today = self._since.date() == datetime.now(UTC).date()
        since = f"{self._since:{'%H:%M:%S' if today else '%Y-%m-%d %H:%M:%S'}}"
        return self._text and f"{self.server}, since {since} UTC: {self._text}"
