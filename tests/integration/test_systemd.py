"""The systemd unit: as systemd reads it, how little it may do, and what it starts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.config import PREFIX, Settings, load

SHIPPED = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = SHIPPED / "iov-ingest@.service"
PROGRAM = "/opt/iov-ingest/bin/iov-ingest"
MOST_EXPOSURE = 15
"""Tenths of systemd's own scale; below 2.0 it says OK, a unit without hardening has 9.6."""


def analyze(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze: tests/install-tools fetches it where there is apt-get")
    ours = Path(sys.executable).parent / "iov-ingest"
    (directory / UNIT.name).write_text(UNIT.read_text().replace(PROGRAM, str(ours)))
    return subprocess.run(
        [tool, *arguments], cwd=directory, capture_output=True, text=True, check=False
    )


def test_systemd_has_nothing_against_it(tmp_path: Path) -> None:
    ended = analyze(tmp_path, "verify", "./iov-ingest@1.service")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_it_may_do_little(tmp_path: Path) -> None:
    ended = analyze(
        tmp_path, "security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", f"./{UNIT.name}"
    )
    assert ended.returncode == 0, ended.stdout


def test_its_settings_exist_and_the_example_is_complete(tmp_path: Path) -> None:
    text = UNIT.read_text()
    named = dict(re.findall(rf"^Environment=({PREFIX}\w+)=(\S+)$", text, re.MULTILINE))
    assert named.keys() <= {PREFIX + field.upper() for field in Settings.model_fields}
    assert len(named) == 3
    password = tmp_path / "mqtt-password"
    password.write_text("secret\n")
    named["IOV_MQTT_PASSWORD_FILE"] = named["IOV_MQTT_PASSWORD_FILE"].replace("%d", str(tmp_path))
    for number in (1, 9):
        environ = {
            name: value.replace("%i", str(number)).replace("%H", "host")
            for name, value in named.items()
        }
        settings = load(
            SHIPPED / "iov-ingest.toml",
            needs=["IOV_MQTT_URL", "IOV_DATABASE_URL"], environ=environ,
        )  # fmt: skip
        assert settings.mqtt_client_id == f"iov.ingest-host-{number}"
        assert settings.http_port == 9460 + number
        assert settings.broker.secret() == "secret"


def test_it_checks_and_then_runs() -> None:
    text = UNIT.read_text()
    commands = re.findall(rf"^(ExecStart(?:Pre)?)=-?{PROGRAM} (\w+) (.*)$", text, re.MULTILINE)
    assert commands == [
        ("ExecStartPre", "check", "--config %d/iov-ingest.toml"),
        ("ExecStart", "run", "--config %d/iov-ingest.toml"),
    ]
    credentials = re.findall(
        r"^LoadCredential=([\w.-]+):(/etc/iov-ingest/\S+)$", text, re.MULTILINE
    )
    assert [name for name, _ in credentials] == ["iov-ingest.toml", "mqtt-password"]
