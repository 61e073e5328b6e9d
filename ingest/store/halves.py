"""Search by halves for the items that the store refuses; the transaction around it goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from ingest.errors import IngestError, Refused, Unforeseen
from ingest.store.failures import DuplicateKey, translated

_T = TypeVar("_T")


def halves(items: list[_T]) -> tuple[list[_T], list[_T]]:
    """Return the first half, which has one item more if the number is odd, and the rest."""
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:]


async def write_what_can_be(
    connection: asyncpg.Connection,
    items: Sequence[_T],
    write: Callable[[Sequence[_T]], Awaitable[object]],
) -> dict[int, IngestError]:
    """Write items in their order; return the refused ones by position, with the reason.

    An item is refused if writing it alone fails. Errors that are not about single items, such as a
    server that is away, are raised.
    """
    refused: dict[int, IngestError] = {}
    parts = [(0, len(items))]
    while parts:
        start, end = parts.pop()
        try:
            with translated():
                async with connection.transaction():
                    await write(items[start:end])
        except (Refused, Unforeseen, DuplicateKey) as failure:
            if end - start == 1:
                refused[start] = failure
            else:
                middle = (start + end) // 2
                parts += [(middle, end), (start, middle)]
    return refused
