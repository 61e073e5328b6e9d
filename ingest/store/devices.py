"""Device names become `device_id`s, in a bounded cache; and what devices say about themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import asyncpg

from ingest.batch import Description
from ingest.errors import IngestError, Unforeseen
from ingest.store.halves import write_what_can_be

CACHE_DEVICES = 1_000_000
"""Number of devices in the cache, which takes 143 MB when full (measured, 17 characters a name).
Without it, looking up a batch's devices costs the database as much as storing their samples."""

_FIND = "SELECT device, device_id FROM iov.device WHERE device = ANY($1::text[])"
_ADD = """
INSERT INTO iov.device (device, first_seen_at)
SELECT device, now() FROM unnest($1::text[]) AS device ORDER BY device
ON CONFLICT (device) DO NOTHING
"""


_EPOCH = "SELECT epoch FROM iov.device_epoch"
_DESCRIBE = "SELECT iov.describe_devices($1, $2, $3, $4, $5, $6)"
DESCRIBED = ("kind", "vin", "region", "fleet")
"""Columns of `iov.device` that a device or an operator fills, in the order of `_DESCRIBE`."""


async def describe(
    connection: asyncpg.Connection, ids: Mapping[str, int], described: Sequence[Description]
) -> None:
    """Keep what was said about devices whose ids are known; part of the caller's transaction."""
    await connection.execute(
        _DESCRIBE,
        [ids[said.device] for said in described],
        [said.at for said in described],
        *([said.fields.get(name) for said in described] for name in DESCRIBED),
    )


class DeviceIds:
    """The ids of the devices seen on this connection; begin a new one with a new connection.

    A database that was restored or replaced may number its devices anew, so nothing learned on
    one connection is carried to the next.
    """

    def __init__(self, connection: asyncpg.Connection, most: int = CACHE_DEVICES) -> None:
        self._connection = connection
        self._most = most
        self._ids: dict[str, int] = {}
        self._epoch: int | None = None
        self.refused: dict[str, IngestError] = {}
        """Devices of the last `resolve` that cannot be registered, with the reason."""

    async def hold(self) -> bool:
        """Keep the resolved ids valid until the current transaction ends; return true if they are.

        Returns false if a device was deleted since they were resolved. Then all ids are forgotten:
        roll back, and resolve them again before a new transaction.
        """
        epoch: int = await self._connection.fetchval(_EPOCH)
        if self._epoch == epoch:
            return True
        self._ids.clear()
        self._epoch = epoch
        return False

    async def resolve(self, devices: set[str]) -> Mapping[str, int]:
        """Return the id of each device, and perhaps of others; add and commit unknown ones first.

        Devices that are in `refused` afterwards have no id.
        """
        self.refused = {}
        if self._epoch is None:
            self._epoch = await self._connection.fetchval(_EPOCH)
        known = self._ids
        # `devices - known.keys()` goes through all that are known: 15 µs a message at a million.
        missing = {device for device in devices if device not in known}
        if not missing:
            return known
        found = await self._look_up(missing)
        found |= {device: known[device] for device in devices if device in known}
        self._keep(found)
        return found

    async def _look_up(self, devices: set[str]) -> dict[str, int]:
        found: dict[str, int] = dict(await self._connection.fetch(_FIND, list(devices)))
        new = [device for device in devices if device not in found]
        if new:
            # They were looked up first, because each conflict of an INSERT uses up an id. They
            # are sorted, so that two workers that add the same devices do not deadlock.
            new.sort()
            refused = await write_what_can_be(self._connection, new, self._add)
            found |= dict(await self._connection.fetch(_FIND, new))
            self.refused = {new[place]: why for place, why in refused.items()}
            for device in new:
                if device not in found and device not in self.refused:
                    self.refused[device] = Unforeseen("not registered: a trigger or rule of yours")
        return found

    async def _add(self, devices: Sequence[str]) -> None:
        await self._connection.execute(_ADD, devices)

    def _keep(self, found: dict[str, int]) -> None:
        self._ids |= found
        excess = len(self._ids) - self._most
        for device in list(islice(self._ids, max(0, excess))):
            del self._ids[device]
