"""What is wrong with a server, and since when."""

from __future__ import annotations

from datetime import UTC, datetime


class Trouble:
    """A sentence while something is wrong, with the server's name and the time it began."""

    def __init__(self, server: str, text: str | None = None) -> None:
        self.server = server
        self._text, self._since = text, datetime.now(UTC)

    @property
    def text(self) -> str | None:
        """What is wrong; None while nothing is."""
        return self._text

    @text.setter
    def text(self, text: str | None) -> None:
        if self._text is None:
            self._since = datetime.now(UTC)
        self._text = text

    @property
    def told(self) -> str | None:
        """The sentence for somebody who does not know which server it is about; time in UTC."""
        return self._text and f"{self.server}, since {self._since:%H:%M:%S} UTC: {self._text}"
