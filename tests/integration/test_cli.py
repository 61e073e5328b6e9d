"""The commands as people run them: what they print, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner

from ingest.child import child
from ingest.cli import app
from ingest.lab.embedded import Mosquitto, Postgres
from ingest.lab.until import until
from ingest.schema import Catalogue, default_directory, load_catalogue
from tests.commands import iov_ingest
from tests.support import (
    OwnDatabase,
    publish_many,
    sample,
    working,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "command",
    [
        "",
        "run",
        "migrate",
        "check",
        "maintain",
        "leave",
        "drain",
        "settings",
        "verify",
        "demo",
        "simulate",
        "picture",
        "replay",
        "bench",
        "schema",
        "schema sql",
        "schema diff",
        "devices",
        "devices import",
        "dead-letters",
        "dead-letters list",
        "dead-letters show",
        "dead-letters replay",
        "dead-letters purge",
    ],
)
def test_every_command_has_help_that_teaches(command: str) -> None:
    ended = CliRunner().invoke(app, [*command.split(), "--help"])
    assert ended.exit_code == 0
    assert "Usage:" in ended.output


@pytest.mark.parametrize(
    "args",
    [("no-such-command",), ("run", "--no-such-option"), ("replay",), ("demo", "--rate", "x")],
)
def test_wrong_arguments_end_with_status_2(args: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, args).exit_code == 2


async def test_a_command_that_is_nearly_one_is_suggested() -> None:
    ended = await iov_ingest("migrat")
    assert ended.status == 2
    assert "did you mean migrate?" in ended.err


async def test_the_shell_completes_commands() -> None:
    """As bash asks it, by a script that `--show-completion` prints."""
    asked = {
        "_IOV_INGEST_COMPLETE": "complete_bash",
        "COMP_WORDS": "iov-ingest mi",
        "COMP_CWORD": "1",
    }
    process = await child(
        sys.executable, "-m", "ingest", env=os.environ | asked, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.split() == [b"migrate"]


async def test_wrong_settings_end_with_status_2_and_every_problem() -> None:
    ended = await iov_ingest("run", mqtt_ulr="x", batch_rows="0", mqtt_password="s3cr3t")
    assert ended.status == 2
    for words in ("IOV_MQTT_ULR", "IOV_BATCH_ROWS", "IOV_DATABASE_URL is not set"):
        assert words in ended.err
    assert "s3cr3t" not in ended.out + ended.err


async def test_a_bench_that_is_told_to_stop_takes_its_servers_with_it(tmp_path: Path) -> None:
    def left() -> list[Path]:
        """Directories of servers, and processes that have one among their arguments."""
        found = list(tmp_path.glob("iov-*"))
        for arguments in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(tmp_path) in arguments.read_text():
                    found.append(arguments)
        return found

    process = await child(
        sys.executable, "-m", "ingest", "bench",
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await until(lambda: len(left()) > 3, "mosquitto and PostgreSQL")
    process.terminate()
    assert await process.wait() == 128 + signal.SIGTERM
    assert not left()


async def test_a_settings_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "iov.toml"
    file.write_text('IOV_STORE = "oracle"\n')
    ended = await iov_ingest("check", "--json", "--config", file)
    assert ended.status == 2
    assert ended.json["ok"] is False
    assert any("IOV_STORE" in problem for problem in ended.json["problems"])


async def test_schema_commands_show_what_follows_from_a_schema() -> None:
    listed = await iov_ingest("schema", "list")
    streams = load_catalogue()
    assert [line.split()[0] for line in listed.out.splitlines()] == list(streams)
    assert {"ad-event", "nev", "session", "truck", "v2x"} < set(streams)
    shown = json.loads((await iov_ingest("schema", "show", "nev")).out)
    assert shown["properties"]["sent_at"]["format"] == "date-time"
    assert 'CREATE TABLE iov."alarm"' in (await iov_ingest("schema", "sql", "alarm")).out
    assert "| `speed_kmh` |" in (await iov_ingest("schema", "docs", "nev")).out
    assert (await iov_ingest("schema", "sql")).out.count("CREATE TABLE") == len(streams)
    assert (await iov_ingest("schema", "lint")).out == f"{len(streams)} schemas are clean\n"
    missing = await iov_ingest("schema", "show", "what")
    assert missing.status == 2
    assert "there is no stream what" in missing.err


async def test_schema_lint_and_diff_say_what_is_wrong_and_end_with_1(tmp_path: Path) -> None:
    spoiled = tmp_path / "schemas"
    shutil.copytree(default_directory(), spoiled)
    file = spoiled / "nev.schema.json"
    file.write_text(file.read_text().replace('"maximum": 500,', '"maximum": 300,', 1))
    (spoiled / "alarm" / "valid" / "more.json").write_text("{}")
    ended = await iov_ingest("schema", "lint", spoiled, "--json")
    assert (ended.status, ended.json["ok"]) == (1, False)
    assert "alarm: valid/more.json: /ts is required" in ended.json["problems"]
    ended = await iov_ingest("schema", "diff", default_directory(), spoiled, "--json")
    assert (ended.status, ended.json["compatible"]) == (1, False)
    narrowed = "maximum narrowed: 500 → 300"
    assert [change["what"] for change in ended.json["changes"]] == [narrowed]
    ended = await iov_ingest("schema", "diff", file, default_directory() / "nev.schema.json")
    assert (ended.status, ended.out.splitlines()[-1]) == (0, "compatible")


async def test_schema_docs_writes_a_page_for_each_stream_and_an_index(tmp_path: Path) -> None:
    ended = await iov_ingest("schema", "docs", "--output", tmp_path / "pages")
    assert ended.status == 0
    assert len(list((tmp_path / "pages").iterdir())) == len(load_catalogue()) + 1


async def test_the_picture_of_an_hour_is_drawn(tmp_path: Path) -> None:
    ended = await iov_ingest("picture", "--output", tmp_path / "hour.png", "--json")
    assert ended.status == 0
    assert ended.json["km"] > 5
    assert (tmp_path / "hour.png").read_bytes().startswith(b"\x89PNG")
    assert (await iov_ingest("picture", "--output", tmp_path / "hour.txt")).status == 2


async def test_migrate_check_simulate_and_replay_as_an_operator_would(
    pg: Postgres, broker: Mosquitto, catalogue: Catalogue, tmp_path: Path
) -> None:
    admin = await asyncpg.connect(pg.url)
    name = f"cli_{os.urandom(4).hex()}"
    await admin.execute(f"CREATE DATABASE {name}")
    database = OwnDatabase(pg, name)
    settings = {"mqtt_url": broker.url, "database_url": database.url}

    ended = await iov_ingest("check", "--json", **settings)
    assert ended.status == 1
    unsafe, unmigrated = ended.json["problems"]
    assert "run iov-ingest migrate" in unmigrated
    assert unsafe == (
        f"database {pg.socket_directory}/{name}: "
        "fsync is off: a power cut loses what was committed and acknowledged"
    )

    dry = await iov_ingest("migrate", "--dry-run", "--json", database_url=database.url)
    assert "CREATE TABLE iov.device" in dry.out
    assert dry.json == {"applied": []}
    first = await iov_ingest("migrate", "--json", database_url=database.url)
    assert "create table iov.nev" in first.json["applied"]
    assert (await iov_ingest("migrate", "--json", database_url=database.url)).json == {
        "applied": []
    }

    ended = await iov_ingest("check", "--json", **settings)
    assert ended.json["problems"] == [unsafe]  # as the tests' database has it
    assert ended.json["measured"]["shared_subscriptions"] is True
    assert ended.json["measured"]["broker_window"] == "at least 3000"

    async with working(broker.url, database.url, catalogue) as worker:
        ended = await iov_ingest(
            "simulate", "--json", "--devices", "5", "--rate", "200", "--duration", "2",
            "--seed", "3", "--streams", "nev,alarm", "--samples-per-message", "3",
            "--bad", "0.1", "--duplicate", "0.1", "--late", "0.1", mqtt_url=broker.url,
        )  # fmt: skip
        account = ended.json
        assert ended.status == 0
        assert list(account) == [
            "messages", "samples", "bad", "dirty", "duplicates", "late", "acknowledged", "seconds",
        ]  # fmt: skip
        assert account["messages"] == account["acknowledged"] > 300
        assert account["samples"] == 3 * account["messages"]
        await worker.settles(account["samples"])
        assert worker.metric("iov_samples_duplicate_total") == account["duplicates"] > 0
        assert worker.metric("iov_samples_rejected_total") == account["bad"] > 0
        assert worker.metric("iov_fields_refused_total") == account["dirty"] > 0

        recording = tmp_path / "recording.ndjson"
        recording.write_text(
            "".join(
                json.dumps({"topic": "iov/v1/R/nev", "payload": {"ts": 1_000 + n, "seq": n}}) + "\n"
                for n in range(50)
            )
        )
        before = worker.settled()
        ended = await iov_ingest(
            "replay", recording, "--speed", "0", "--shift", "--json", mqtt_url=broker.url
        )
        assert ended.status == 0
        assert ended.json["messages"] == ended.json["acknowledged"] == 50
        await worker.settles(int(before) + 50)
        # At its own speed 49 ms take 49 ms.
        ended = await iov_ingest("replay", recording, "--shift", "--json", mqtt_url=broker.url)
        assert ended.json["seconds"] >= 0.049
        assert ended.json["refused"] == 0
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def test_replay_tells_what_a_worker_refuses(
    tmp_path: Path, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    payloads = (
        {"ts": 50_000, "seq": 1, "soc_pct": "full", "speed_kmh": 1},
        {"ts": "2032-90-02", "seq": 2},
    )
    recording = tmp_path / "recording.ndjson"
    lines = (json.dumps({"topic": "iov/v1/R/nev", "payload": one}) + "\n" for one in payloads)
    recording.write_text("".join(lines))
    async with working(broker.url, database.url, catalogue) as worker:
        ended = await iov_ingest(
            "replay", recording, "--shift", "--resend", "--strict", "--json", mqtt_url=broker.url
        )
        await worker.settles(2)
    assert ended.status == 1
    assert (ended.json["refused"], ended.json["refused_fields"]) == (1, 1)
    assert ended.json["why"] == {"nev bad_timestamp: /ts is not an RFC 3339 date-time with zone": 1}
    assert await database.one("SELECT count(*) FROM iov.nev WHERE resend") == 1
    assert await database.reasons() == ["bad_timestamp"]


async def test_check_says_what_it_cannot_reach() -> None:
    ended = await iov_ingest(
        "check", "--json",
        mqtt_url="mqtt://127.0.0.1:1", database_url="postgresql://u:s3cr3t@127.0.0.1:1/d",
    )  # fmt: skip
    assert ended.status == 1
    broker, database = ended.json["problems"]
    assert broker.startswith("broker 127.0.0.1:1: cannot connect: connection refused")
    assert database.startswith("database 127.0.0.1:1/d: connection refused")
    assert "s3cr3t" not in ended.out + ended.err


async def test_migrate_says_what_it_cannot_reach() -> None:
    ended = await iov_ingest("migrate", database_url="postgresql://u@127.0.0.1:1/d")
    assert ended.status == 1
    assert "failed:" in ended.err
    assert "Traceback" not in ended.err


async def test_the_demo_loses_nothing() -> None:
    ended = await iov_ingest("demo", "--duration", "5", "--rate", "500", "--json")
    assert ended.status == 0
    account = ended.json
    assert list(account) == [
        "published", "stored", "duplicates", "rejected", "lost", "seconds", "streams", "frames",
    ]  # fmt: skip
    assert account["lost"] == account["rejected"] == 0
    assert account["stored"] == account["published"] > 500
    assert account["streams"].keys() == load_catalogue().keys()
    assert all(account["streams"].values()), account["streams"]
    assert account["frames"] > 0
    for words in ("mosquitto at mqtt://127.0.0.1:", "psql", "SELECT device", "docs/start.md"):
        assert words in ended.err
    where = re.search("page +http://127.0.0.1:[0-9]+/\n", ended.err)
    assert where is not None
    assert where.start() < ended.err.index("\nbroker ")


async def test_the_demo_without_mosquitto_runs_on_amqtt() -> None:
    code = (
        "import ingest.lab.demo as demo; demo.mosquitto_path = lambda: None; "
        "from ingest.cli import main; main()"
    )
    process = await child(
        sys.executable, "-c", code, "demo", "--duration", "3", "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    account = json.loads(out.splitlines()[-1])
    assert "amqtt at mqtt://" in err.decode()
    assert (account["lost"], account["stored"]) == (0, account["published"])
    # At a rate that it bears: 2,000 samples came of 3 s at the usual one.
    assert account["published"] < 1_000


async def test_the_bench_runs_small_so_that_it_cannot_rot() -> None:
    ended = await iov_ingest(
        "bench", "--duration", "1", "--warm-up", "0", "--source", "aiomqtt", "--json"
    )
    assert ended.status == 0, ended.err
    assert list(ended.json) == [
        "committed_per_s", "cpu_us_per_message", "rss_mb", "messages", "seconds", "source",
    ]  # fmt: skip
    assert ended.json["messages"] > 0
    assert ended.json["source"] == "aiomqtt"


async def test_verify_gives_the_account_of_the_contract(tmp_path: Path) -> None:
    ended = await iov_ingest(
        "verify", "--json", "--faults", "broker_cut,worker_sigterm", "--duration", "3",
        "--rate", "200", "--every", "1", "--seed", "2", "--report", tmp_path / "report",
    )  # fmt: skip
    told = ended.json
    assert ended.status == 0, ended.err
    assert list(told)[:8] == [
        "published", "stored", "lost", "duplicated", "altered", "early_acks", "faults",
        "recovery_s",
    ]  # fmt: skip
    assert told["published"] == told["stored"] > 0
    assert told["lost"] == told["duplicated"] == told["altered"] == told["early_acks"] == 0
    assert min(told["faults"].values()) >= 1
    assert list(told["recovery_s"]) == ["p50", "max"]
    written = {file.name for file in (tmp_path / "report").iterdir()}
    assert written == {"report.md", "account.json", "series.csv", "run.png", "logs"}


@pytest.mark.parametrize("arguments", [("--faults", "earthquake"), ("--target", "moon")])
async def test_verify_says_what_it_does_not_know(arguments: tuple[str, str]) -> None:
    ended = await iov_ingest("verify", *arguments)
    assert ended.status == 2
    assert "not among" in ended.err or "embedded or configured" in ended.err


async def test_it_says_which_version_it_is() -> None:
    ended = await iov_ingest("--version")
    assert ended.out == f"iov-ingest {version('iov-ingest')}\n"


@pytest.mark.parametrize("command", ["leave", "drain"])
async def test_what_a_worker_left_behind_is_taken_out(
    command: str, database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue) as victim:
        await victim.kill()
    await database.execute("UPDATE iov.worker SET heartbeat_at = now() - interval '1 minute'")
    await publish_many(broker.url, [sample(seq) for seq in range(200)])
    settings = {"mqtt_url": broker.url, "database_url": database.url}
    refused = await iov_ingest(command, "--client-id", "worker-1", **settings)
    assert refused.status == 1
    assert "--last" in refused.err
    ended = await iov_ingest(command, "--json", "--last", "--client-id", "worker-1", **settings)
    assert ended.status == 0, ended.err
    assert ended.json == {"client_id": "worker-1", "how": "drained", "messages": 200}
    assert await database.count() == 200
    assert await database.count("worker") == 0
    unknown = await iov_ingest(command, "--last", "--client-id", "worker-1", **settings)
    assert unknown.status == 1
    assert "--unregistered" in unknown.err
    again = await iov_ingest(
        command, "--json", "--last", "--unregistered", "--client-id", "worker-1", **settings
    )
    assert again.json["how"] == "no session"
