"""`leave`: has a worker leave for good, whether it is at work or will not return."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ingest.broker import Broker
from ingest.commands import statefulset
from ingest.commands.common import (
    ConfigOption,
    JsonOption,
    ending,
    people,
    run_async,
    say,
    settings_of,
)
from ingest.config import Settings
from ingest.errors import NotReady
from ingest.schema import digest_of, load_catalogue
from ingest.store import register
from ingest.store.register import Register, Registered
from ingest.worker.takeover import take_over

_LOOK_EVERY_S = 0.5


app = typer.Typer()


@app.command(name="leave")
def leave_(
    config: ConfigOption = None,
    client_id: Annotated[
        str | None, typer.Option(help="Client id of the worker; by default IOV_MQTT_CLIENT_ID.")
    ] = None,
    last: Annotated[
        bool,
        typer.Option("--last", help="Leave even if no other worker is left on the subscription."),
    ] = False,
    unregistered: Annotated[
        bool,
        typer.Option("--unregistered", help="Proceed even if the worker is not in the register."),
    ] = False,
    if_scaled_in: Annotated[
        bool,
        typer.Option("--if-scaled-in", help="Only if this pod's StatefulSet is scaling it in."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Have a worker leave for good, so that nothing stays behind in its session at the broker.

    If the worker is at work, this command asks it through the database and waits for it. The worker
    unsubscribes, commits and acknowledges what the broker still has for it, ends its session, and
    stops. SIGUSR1 has a worker process do the same.

    If the worker will not return, this command takes its session over.

    Before a restart none of this is needed: SIGTERM keeps the session for the next start.

    With --if-scaled-in the command is a Kubernetes preStop hook: it asks the API whether the
    replicas of the StatefulSet still include this pod, and does nothing if they do.
    """
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
        name = client_id or settings.mqtt_client_id
        if if_scaled_in and not run_async(statefulset.scaled_in()):
            account = {"client_id": name, "how": "stays", "messages": None}
        else:
            leaving = leave(
                settings, name, last=last, unregistered=unregistered, progress=people.print
            )
            account = run_async(leaving)
        say(account, as_json=as_json)


app.command(
    name="drain", help="The former name of `leave`; it goes on working, with the same options."
)(leave_)


async def leave(
    settings: Settings,
    client_id: str,
    *,
    last: bool,
    unregistered: bool = False,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Have a worker leave; return the keys of `--json`.

    A worker that is at work is asked to leave, and waited for. If it is not at work, its session is
    taken over. Raises

    - NotReady if no other worker would be left on the subscription, unless `last` is set
    - NotReady if the register does not know the worker, unless `unregistered` is set
    - NotReady if the worker was started again in the meantime
    - Unavailable if a server is away, or the worker came back while its session was taken over
    """
    async with register.opened(settings.database, settings.broker) as opened:
        worker = await opened.find(client_id)
        if worker is None:
            if not unregistered:
                await _unknown(opened, settings.broker, client_id)
            worker = Registered(client_id, settings.broker.subscription, alive=False)
        if not await opened.ask_to_leave(worker, last=last):
            raise NotReady(
                f"no other worker is at work on {worker.subscription}: what is published would be "
                "kept for nobody. Start another one first, or say --last"
            )
        if worker.alive:
            progress(f"{client_id} was asked to leave and is taking out what is left for it")
        while worker.alive:
            await asyncio.sleep(_LOOK_EVERY_S)
            found = await opened.find(client_id)
            if found is None:
                return {"client_id": client_id, "how": "left", "messages": None}
            if found.alive and not found.leaving:
                raise NotReady(f"{client_id} was started again meanwhile: ask once more")
            worker = found
        progress(f"taking out what the broker keeps for {client_id}")
        began_s = time.monotonic()
        catalogue = load_catalogue(settings.schema_dir, digest_of(settings.digest_key_file))
        messages = await take_over(settings, catalogue, opened, worker)
        silent_s = time.monotonic() - began_s
        await opened.forget(client_id, silent_s=silent_s)
    how = "no session" if messages is None else "drained"
    return {"client_id": client_id, "how": how, "messages": messages or 0}


async def _unknown(opened: Register, broker: Broker, client_id: str) -> None:
    """Raise NotReady, with the reason why the register does not know the worker.

    Its session is not taken over unasked: it could be that of a worker that is at work.
    """
    here = broker.id
    if there := await opened.elsewhere(client_id):
        raise NotReady(
            f"{client_id} is in the register under the broker {there}, not {here}: set "
            "IOV_MQTT_URL, or IOV_MQTT_BROKER_ID, as its workers have it"
        )
    raise NotReady(
        f"no worker {client_id} of broker {here} is in the register: its session, if there is "
        "one, is taken over with --unregistered"
    )
