"""Keeps a message that kills its reader from doing so for ever.

In spite of all checks and limits, a message may kill its reader: because of a bug in a library
written in C, or in a container that is too small. The broker sends the message again, to this
worker or to another one that takes the session over. So if the last reader of a session did not end
in order, the next one reads the first messages with care:

- It reads some messages at a time, after it has noted in the database which ones.
- If it dies too, the next reader reads the noted messages one by one.
- If a reader dies over a single message, the note names that message, and it is set aside unread.

The note is in the database and not in a file, because a session outlives the machine of its worker
and another worker may take it over. The flag DUP (MQTT 5, 3.3.1.1) is not enough: brokers differ in
which client gets an unacknowledged message again, and DUP does not say which of six thousand
messages killed the reader.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from random import Random

import asyncpg
import orjson
import structlog

from ingest.backoff import Backoff
from ingest.broker import Broker
from ingest.database import Database
from ingest.errors import Unavailable
from ingest.model import Delivery
from ingest.store.connect import connect, connected
from ingest.store.failures import away, translated
from ingest.store.register import NAME

TOGETHER = 100
"""Number of messages noted, read and committed together while care is taken."""
ENDS = 3
"""Number of readers that must die in a row before a message is set aside.

The first reader reads the message without a note, the second notes it together with others, the
third notes it alone.
"""
_FIRST_DELAY_S, _MOST_DELAY_S = 0.1, 5.0
_END_TIMEOUT_S = 2.0
_BEGIN = """
INSERT INTO iov.guard AS g (broker, client_id, running) VALUES ($1, $2, true)
ON CONFLICT (broker, client_id) DO UPDATE SET running = true
RETURNING (SELECT running FROM iov.guard WHERE broker = $1 AND client_id = $2) AS before, suspects
"""
_NOTE = "UPDATE iov.guard SET suspects = $3 WHERE broker = $1 AND client_id = $2"
_END = "UPDATE iov.guard SET running = false, suspects = NULL WHERE broker = $1 AND client_id = $2"

log = structlog.get_logger(__name__)


class Guard:
    """Notes on the messages of one session that may have killed a reader."""

    def __init__(self, database: Database, broker: Broker, random: Random) -> None:
        self._database = database
        self._in_flight_at_most = broker.receive_maximum
        self._key = broker.id, broker.client_id
        self._backoff = Backoff(_FIRST_DELAY_S, _MOST_DELAY_S, random)
        self._connection: asyncpg.Connection | None = None
        """Open while care is taken: connecting for each note delayed a stream by half a minute."""
        self._begun = False
        self._left = 0
        self._suspects: dict[str, int] = {}
        """Digests of the messages that the last reader had noted when it died.

        Each comes with the number of readers in a row that have died after they noted it.
        """
        self._alone = False

    @property
    def takes_care(self) -> bool:
        """True while messages are to be read in `groups`, each noted before it is read."""
        return self._left > 0

    async def begin(self) -> None:
        """Find out how the last reader of this session ended; waits for the database."""
        while not self._begun:
            try:
                async with connected(self._database, NAME) as connection:
                    before, suspects = await connection.fetchrow(_BEGIN, *self._key)
            except Unavailable:
                await asyncio.sleep(self._backoff.delay_s())
                continue
            self._begun = True
            if before:
                self._suspects = suspects or {}
                self._alone = len(self._suspects) == 1
                # No more than this was in flight at the end.
                self._left = self._in_flight_at_most
                log.warning(
                    "the last worker of this session did not end in order",
                    hint="its messages are read with care",
                    suspects=len(self._suspects),
                )

    def groups(self, deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
        """Yield groups of deliveries to be read together, in their order; a suspect is alone."""
        group: list[Delivery] = []
        for delivery in deliveries:
            suspected = digest(delivery) in self._suspects
            if group and (suspected or len(group) >= TOGETHER):
                yield group
                group = []
            group.append(delivery)
            if suspected:
                yield group
                group = []
        if group:
            yield group

    def sets_aside(self, delivery: Delivery) -> bool:
        """Return true if the last readers died in a row after noting the message.

        There must be `ENDS - 1` of them, and the last one must have noted only this message.
        """
        return self._alone and self._suspects.get(digest(delivery), 0) >= ENDS - 1

    async def note(self, group: Sequence[Delivery]) -> None:
        """Write down what is about to be read; waits for the database."""
        noted = {digest(d): self._suspects.get(digest(d), 0) + 1 for d in group}
        if any(map(self.sets_aside, group)):
            noted = dict(self._suspects)  # it is not read, but remembered until it is stored
        await self._write(_NOTE, *self._key, orjson.dumps(noted))

    async def read(self, group: Sequence[Delivery]) -> None:
        """Record that a group is committed; after the last group, no more care is taken."""
        for delivery in group:
            self._suspects.pop(digest(delivery), None)
        self._left -= len(group)
        if not self.takes_care:
            await self._write(_NOTE, *self._key, None)
            self._disconnect()
            log.info("messages are read as usual again")

    async def _write(self, statement: str, *values: object) -> None:
        while True:
            try:
                with translated(away, self._database):
                    if self._connection is None:
                        self._connection = await connect(self._database, NAME)
                    await self._connection.execute(statement, *values)
            except Unavailable:
                self._disconnect()
                await asyncio.sleep(self._backoff.delay_s())
            else:
                self._backoff.reset()
                return

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def end(self) -> None:
        """Note that this reader ends in order; if that fails, the next reader takes care."""
        self._disconnect()
        if not self._begun:
            return
        try:
            async with (
                asyncio.timeout(_END_TIMEOUT_S),
                connected(self._database, NAME) as connection,
            ):
                await connection.execute(_END, *self._key)
        except (Unavailable, TimeoutError) as exc:
            log.debug("end not noted", why=str(exc))


def digest(delivery: Delivery) -> str:
    """Return a name for a message that stays the same if the message comes again."""
    text = delivery.topic.encode(errors="replace") + b"\0" + delivery.payload
    return hashlib.blake2b(text, digest_size=8).hexdigest()
