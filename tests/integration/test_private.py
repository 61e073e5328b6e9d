"""Private data is in no table, for nobody, in no log and on no page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import asyncpg
import pytest

from ingest.lab.embedded import Mosquitto
from ingest.schema import Catalogue, default_directory
from ingest.schema.catalogue import private_names
from tests.support import OwnDatabase, publisher, sample, working

SECRET = "s3cr3t"
REQUIRED: dict[str, dict[str, Any]] = {
    "session": {"event": "login"}, "cockpit": {"event": "boot"},
    "ad-event": {"event": "activation"}, "v2x": {"msg_type": "BSM"},
}  # fmt: skip


def spellings(name: str) -> list[str]:
    """Five ways to write a name in snake case, the last of them with dots."""
    first, *rest = name.split("_")
    camel = first + "".join(map(str.title, rest))
    upper = name.upper().replace("_", "-")
    return [
        name,
        camel,
        camel[:1].upper() + camel[1:],
        upper,
        "Vehicle." + ".".join((first, *rest)),
    ]


def nested(name: str, value: Any) -> dict[str, Any]:
    """The name as an object in an object."""
    first, _, rest = name.partition("_")
    return {first: {rest: value}} if rest else {}


def private(name: str, spelling: str, exempt: set[str]) -> dict[str, Any]:
    """Members of a sample that hold a secret under a name, at three depths."""
    here = {} if spelling in exempt else {spelling: SECRET}
    deeper = {spelling: SECRET, "b": [{spelling: [SECRET], "kept": 1}], **nested(name, SECRET)}
    return {**here, "a": deeper, **nested(name, {"x": SECRET}), "kept": 1}


def samples(stream: str, exempt: set[str]) -> Iterator[dict[str, Any]]:
    """Samples that become rows, and some that become dead letters, with every name."""
    for name in private_names(default_directory()):
        for spelling in spellings(name):
            held = private(name, spelling, exempt)
            head = {"ts": sample()["ts"], "sw_version": "1"} | REQUIRED.get(stream, {})
            yield head | held
            yield head | {"trip_id": held}
            yield head | held | {"ts": "when it pleases"}


async def test_no_private_name_in_any_spelling_or_depth_is_kept_anywhere(
    database: OwnDatabase,
    broker: Mosquitto,
    catalogue: Catalogue,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = set(private_names(default_directory()))
    assert {"vin", "plate_no", "driver_id", "imsi", "iccid", "email", "id_card_number"} <= names
    number = 0
    async with working(
        broker.url, database.url, catalogue, log_level="debug", dead_letters_per_minute="1000000",
        dead_letter_bytes_per_minute="1000000000",
    ) as worker:  # fmt: skip
        async with publisher(broker.url) as publish:
            for name, stream in catalogue.items():
                fields = stream.schema["properties"].items()
                exempt = {f for f, field in fields if field.get("x-hash") or field.get("x-device")}
                said = list(samples(name, exempt))
                for first in range(0, len(said), 300):
                    await publish(said[first : first + 300], f"iov/v1/V1/{name}")
                number += len(said)
        await worker.settles(number)
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{worker.url}/status") as answer,
        ):
            page = await answer.text()
        assert "dead_letter_groups" in page
        assert SECRET not in page
    assert worker.metric("iov_samples_rejected_total") == number / 3
    assert SECRET not in "".join(capsys.readouterr())
    reader = await database.user("plain_reader", "iov_reader")
    for url in (database.url, reader):
        connection = await asyncpg.connect(url)
        tables = await connection.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c "
            "WHERE c.relnamespace = 'iov'::regnamespace AND c.relkind IN ('r', 'p', 'v')"
        )
        assert len(tables) > len(catalogue)
        for table in tables:
            columns = await connection.fetch(
                "SELECT quote_ident(attname) AS name FROM pg_attribute WHERE attnum > 0 AND "
                "NOT attisdropped AND attrelid = $1::text::regclass "
                "AND has_column_privilege(attrelid, attnum, 'SELECT')",
                table["name"],
            )
            for column in columns:
                text = (
                    f"convert_from({column['name']}, 'UTF8')"
                    if (table["name"], column["name"]) == ("iov.dead_letter", "payload")
                    else f"{column['name']}::text"
                )
                found = await connection.fetchval(
                    f"SELECT count(*) FROM {table['name']} WHERE position($1 IN {text}) > 0",
                    SECRET,
                )
                assert not found, (table["name"], column["name"])
        await connection.close()
    kept = await database.one("SELECT count(*) FROM iov.nev WHERE extra ->> 'kept' = '1'")
    assert kept == len(names) * 5
