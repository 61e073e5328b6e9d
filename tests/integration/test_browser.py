"""The live page in a real browser: it moves, survives a restart, and nothing goes wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ingest.lab.embedded import Mosquitto, free_port, neighbouring_ports
from ingest.lab.until import until
from ingest.schema import Catalogue
from tests.browser import Browser, browsing, chromium
from tests.support import (
    OwnDatabase,
    bad_sample,
    publisher,
    sample,
    working,
)

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium: tests/install-tools fetches it where there is apt-get"
)
STATE = "document.getElementById('state').textContent"
STORED = "(document.querySelector('#streams td:last-child') || {}).textContent"
CURVE = "history.rate.length"
DEVICES = "devices.size"


async def shows(page: Browser, expression: str, wanted: Any) -> None:
    async def shown() -> bool:
        return bool(await page.evaluate(expression) == wanted)

    await until(shown, f"{expression} to be {wanted}")


@pytest.mark.parametrize("width", [1200, 390])
async def test_the_page_moves_and_survives_a_restart_of_the_worker(
    width: int, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, tmp_path: Path
) -> None:
    url, port = broker.url, str(free_port())
    place = {"lon": 121.47, "lat": 31.23}
    async with (
        working(url, database.url, catalogue, http_port=port) as first,
        publisher(url) as publish,
        browsing(f"http://127.0.0.1:{port}/", tmp_path, width) as page,
    ):
        await shows(page, STATE, "ready")
        # With nothing received it names its servers, and what to type.
        for wanted in ("$share/ingest/iov/v1/+/+", url.removeprefix("mqtt://"), database.name):
            await shows(page, f"at('where').textContent.includes({wanted!r})", wanted=True)
        await shows(page, "at('try').textContent.startsWith('mosquitto_pub -h ')", wanted=True)
        await shows(page, "at('map').checkVisibility()", wanted=False)
        await shows(page, "at('map-note').textContent.startsWith('No position')", wanted=True)
        for seq in range(3):
            await publish(sample(seq, location=place), f"iov/v1/V{seq}/nev")
        await publish(bad_sample(9, gear="<img src=x onerror=alert(1)>"))
        await shows(page, STORED, "3")
        await shows(page, DEVICES, 3)
        await shows(
            page, "document.querySelector('#letters td:nth-child(2)').textContent", "schema"
        )
        await shows(page, "at('nothing').checkVisibility()", wanted=False)
        await shows(page, "at('legend').textContent", "cars")
        drawn = await page.evaluate(CURVE)
        await until(lambda: _more(page, drawn), "the curve to go on")
        ink = "map.getContext('2d').getImageData(0, 0, map.width, map.height).data.some((v) => v)"
        assert await page.evaluate(f"((map) => {ink})(document.getElementById('map'))")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.refused
        await first.stop()
        await shows(page, STATE, "no connection, trying again")
        async with working(url, database.url, catalogue, http_port=port):
            await shows(page, STATE, "ready")
            await publish(sample(10, location=place), "iov/v1/V9/nev")
            await shows(page, STORED, "1")
            await shows(page, DEVICES, 4)
        assert not page.exceptions


async def test_the_page_of_one_worker_leads_to_all_of_them(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, tmp_path: Path
) -> None:
    link = "[...document.querySelectorAll('#others a')].map((a) => a.textContent + ' ' + a.href)"
    ports = neighbouring_ports(2)
    names = ["worker-<b>1", "worker-2"]
    async with (
        working(
            broker.url, database.url, catalogue, http_port=str(ports), mqtt_client_id=names[0],
            http_host="0.0.0.0",
        ) as first,
        browsing(f"http://127.0.0.1:{ports}/", tmp_path, 390) as page,
    ):  # fmt: skip
        await shows(page, STATE, "ready")
        await shows(page, "at('others').hidden", wanted=True)
        async with working(
            broker.url, database.url, catalogue, http_port=str(ports + 1),
            mqtt_client_id=names[1], http_host="0.0.0.0",
        ):  # fmt: skip
            # The heartbeat that tells of it comes within five seconds.
            await shows(page, "at('others').hidden", wanted=False)
            told = await page.evaluate("at('others').textContent")
            assert told == f"at work: {names[1]} · {names[0]} (this one)"
            assert await page.evaluate(link) == [f"{names[1]} http://127.0.0.1:{ports + 1}/"]
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        await database.execute(
            "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at, page_address) "
            "SELECT 'w-' || n, broker, subscription, now() + interval '1 hour', a FROM iov.worker, "
            "(VALUES (3, 'far.example:9464'), (4, 'javascript:alert(1)//:1'), (5, NULL)) v (n, a) "
            f"WHERE client_id = '{names[0]}'"
        )
        wanted = ["w-3 http://far.example:9464/", f"{names[1]} http://127.0.0.1:{ports + 1}/"]
        await until(lambda: _is(page, link, wanted), "the links of others")
        assert not page.exceptions
        await first.stop()


async def _is(page: Browser, expression: str, wanted: Any) -> bool:
    return bool(await page.evaluate(expression) == wanted)


async def _more(page: Browser, than: int) -> bool:
    return bool(await page.evaluate(CURVE) > than)
