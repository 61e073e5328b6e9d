"""`simulate`: publishes the messages of a simulated fleet that is made from a seed."""

from __future__ import annotations

from typing import Annotated

import typer

from ingest.commands.common import ConfigOption, JsonOption, ending, run_async, say, settings_of
from ingest.errors import ConfigError
from ingest.lab.commands.publish import publish
from ingest.lab.fleet import STREAMS, Fleet, Mischief
from ingest.lab.simulate import Simulation

app = typer.Typer()


@app.command()
def simulate(
    config: ConfigOption = None,
    devices: Annotated[int, typer.Option(help="Vehicles.", min=1)] = 100,
    rate: Annotated[float, typer.Option(help="Messages per second.", min=0.001)] = 100,
    duration: Annotated[float, typer.Option(help="Seconds.", min=0.1)] = 10,
    seed: Annotated[int, typer.Option(help="The same seed, the same fleet.", min=0)] = 1,
    streams: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(STREAMS),
    samples_per_message: Annotated[int, typer.Option(help="Above 1: arrays.", min=1)] = 1,
    bad: Annotated[
        float,
        typer.Option(
            help="Share of bad messages; half cost a field, half the sample.",
            min=0,
            max=1,
        ),
    ] = 0,
    duplicate: Annotated[float, typer.Option(help="Share sent twice.", min=0, max=1)] = 0,
    late: Annotated[float, typer.Option(help="Share sent hours late.", min=0, max=1)] = 0,
    qos: Annotated[int, typer.Option(help="QoS to publish with.", min=0, max=2)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Publish messages of a fleet made from a seed; count what is bad, dirty, twice and late."""
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL")
        names = [name.strip() for name in streams.split(",") if name.strip()]
        if unknown := sorted(set(names) - set(STREAMS)) or not names:
            raise ConfigError([f"--streams: {unknown} not among {', '.join(STREAMS)}"])
        fleet = Fleet(devices, seed, names, samples_per_message, Mischief(bad, duplicate, late))
        simulation = Simulation(fleet, rate, duration)
        run_async(publish(settings, qos, simulation, round(rate * duration)))
        say(simulation.account(), as_json=as_json)
