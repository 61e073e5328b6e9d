"""`demo`: everything embedded, on one screen."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from ingest import log
from ingest.commands.common import JsonOption, ending, people, run_async, say
from ingest.lab import demo as demo_tool
from ingest.worker.service import signals

app = typer.Typer()


@app.command()
def demo(
    duration: Annotated[
        float | None, typer.Option(help="Seconds; without it until Ctrl-C.", min=0.1)
    ] = None,
    devices: Annotated[int, typer.Option(help="Vehicles.", min=1)] = 200,
    rate: Annotated[
        float | None,
        typer.Option(help="Messages per second; 1,000, and 100 without mosquitto.", min=0.1),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same fleet.", min=0)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run everything in one command: a database, a broker, a fleet and the service.

    Prints the address of its live page first. Ctrl-C ends the demo, which then prints its account.
    It keeps no data.
    """
    with ending():
        log.configure("logfmt", "warning")
        account = run_async(_demo(duration, devices, rate, seed))
        people.print("\nstored is counted in the database; lost = published - stored - rejected")
        people.print("next: docs/start.md sets up a database, a broker and two workers that stay\n")
        say(account, as_json=as_json)
        if account["lost"]:
            raise typer.Exit(1)


async def _demo(
    duration: float | None, devices: int, rate: float | None, seed: int
) -> dict[str, Any]:
    stop = asyncio.Event()
    people.print("Starting PostgreSQL, a broker and the service …")
    with signals(stop.set), Live(console=people, refresh_per_second=4) as live:
        showing: list[asyncio.Task[None]] = []

        def started(show: demo_tool.Demo) -> None:
            url = show.postgres.url
            query = (
                "SELECT device, ts, speed_kmh, soc_pct FROM iov.nev JOIN iov.device "
                "USING (device_id) ORDER BY ts DESC LIMIT 5"
            )
            live.console.print(f"page      http://127.0.0.1:{show.service.http_port}/")
            slow = "" if show.broker == "mosquitto" else ", for mosquitto is not here: it is slow"
            live.console.print(f"broker    {show.broker} at {show.settings.mqtt_url}{slow}")
            live.console.print(f"database  {url}", soft_wrap=True)
            live.console.print(
                f'try       {show.postgres.psql} "{url}" -c "{query}"\n',
                soft_wrap=True,
                highlight=False,
            )
            showing.append(asyncio.create_task(_show(show, live), name="screen"))

        account = await demo_tool.demo(
            devices=devices, rate=rate, duration_s=duration, seed=seed, started=started, stop=stop
        )
        for task in showing:
            task.cancel()
    return account


async def _show(show: demo_tool.Demo, live: Live) -> None:
    """Show the throughput once a second while the demo runs."""
    before = 0
    while not show.over:
        stored = show.counted("iov_samples_stored")
        table = Table(box=None)
        for title in ("published", "stored", "stored/s", "in flight", "ready"):
            table.add_column(title, justify="right")
        ready = "no: " + show.service.problems()[0] if show.service.problems() else "yes"
        table.add_row(
            f"{show.simulation.samples:,}",
            f"{stored:,}",
            f"{stored - before:,}",
            f"{show.service.source.inbox.in_flight:,}",
            ready,
        )
        live.update(table)
        before = stored
        await asyncio.sleep(1)
