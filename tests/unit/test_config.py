from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ingest.config import Settings, load
from ingest.errors import ConfigError, Unavailable

GOOD = {"IOV_MQTT_URL": "mqtt://broker", "IOV_DATABASE_URL": "postgresql:///iov"}


def problems(environ: dict[str, str], file: Path | None = None, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file, environ=environ, **more)
    return caught.value.problems


def test_the_defaults_that_matter() -> None:
    settings = load(environ={})
    assert settings.mqtt_topic == "iov/v1/+/+"
    assert settings.mqtt_group == "ingest"
    assert settings.mqtt_client_id.startswith("iov-ingest-")
    assert settings.mqtt_session_expiry_s >= 86_400
    assert (settings.max_payload_bytes, settings.max_inflated_bytes) == (262_144, 4 * 1024**2)
    assert (settings.max_samples, settings.max_age_days, settings.max_ahead_s) == (1_000, 30, 300)
    assert settings.http_port == 9464


def test_every_problem_is_reported_at_once() -> None:
    found = problems(
        {
            "IOV_MQTT_ULR": "mqtt://broker",
            "IOV_BATCH_ROWS": "0",
            "IOV_STORE": "oracle",
            "IOV_MQTT_CERT_FILE": __file__,
        },
        needs=("IOV_MQTT_URL", "IOV_DATABASE_URL"),
    )
    text = "\n".join(found)
    assert "IOV_MQTT_ULR is not a setting; did you mean IOV_MQTT_URL?" in found
    assert "IOV_BATCH_ROWS: Input should be greater than or equal to 1" in text
    assert "IOV_STORE: Input should be 'auto', 'postgres' or 'timescaledb'" in text
    assert "IOV_DATABASE_URL is not set" in found
    assert "IOV_MQTT_URL is not set" in found


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"IOV_MQTT_URL": "http://b"}, "must begin with mqtt://"),
        ({"IOV_MQTT_URL": "mqtt://"}, "names no host"),
        ({"IOV_MQTT_URL": "mqtt://b:x"}, "is not a URL"),
        ({"IOV_MQTT_URL": "mqtt://u:p@b"}, "must hold no user or password"),
        ({"IOV_MQTT_GROUP": "a/b"}, "must not hold"),
        ({"IOV_MQTT_TOPIC": "iov/#/x"}, "is not a topic filter"),
        ({"IOV_MQTT_TOPIC": "iov/a+/x"}, "is not a topic filter"),
        ({"IOV_MQTT_TOPIC": "$share/g/iov/#"}, "is not a topic filter"),
        ({"IOV_MQTT_CA_FILE": "/no/such"}, "cannot be read"),
        (
            {"IOV_MQTT_PASSWORD": "s3cr3t", "IOV_MQTT_PASSWORD_FILE": __file__},
            "exclude each other",
        ),
        ({"IOV_MQTT_CERT_FILE": __file__}, "need each other"),
        ({**GOOD, "IOV_MQTT_CA_FILE": __file__}, "need mqtts:// or wss://"),
        ({"IOV_MQTT_URL": "ws://b", "IOV_MQTT_CLIENT": "mqtt5"}, "reads mqtt:// and mqtts:// only"),
        ({"IOV_MAX_INFLATED_BYTES": "5"}, "must not be below"),
        ({"IOV_MQTT_URL": "mqtts://b", "IOV_MQTT_CA_FILE": __file__}, "TLS files cannot be used"),
    ],
)
def test_what_is_wrong_is_said_and_secrets_are_not(environ: dict[str, str], sentence: str) -> None:
    found = problems(environ)
    assert any(sentence in problem for problem in found)
    assert "s3cr3t" not in str(found)


def test_a_file_has_the_same_names_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / "iov.toml"
    file.write_text('IOV_MQTT_URL = "mqtt://file"\nIOV_BATCH_ROWS = 7\nIOV_MAX_AGE_DAYS = 1.5\n')
    settings = load(file, environ={"IOV_MQTT_URL": "mqtt://environment"}, needs=("IOV_MQTT_URL",))
    assert settings.broker.host == "environment"
    assert (settings.batch_rows, settings.max_age_days) == (7, 1.5)


def test_a_file_that_is_missing_wrong_or_has_unknown_names_is_a_problem(tmp_path: Path) -> None:
    assert "cannot be read" in problems({}, tmp_path / "none.toml")[0]
    (tmp_path / "bad.toml").write_text("IOV_HTTP_PORT = 1\nIOV_STORE = oracle\n")
    (told,) = problems({}, tmp_path / "bad.toml", needs=["IOV_MQTT_URL"])
    assert "is not TOML: " in told
    assert "line 2, column" in told
    (tmp_path / "latin.toml").write_bytes(b'# \xe9\nIOV_STORE = "auto"\n')
    (told,) = problems({}, tmp_path / "latin.toml", needs=["IOV_MQTT_URL"])
    assert "byte 2 is not UTF-8" in told
    (tmp_path / "sections.toml").write_text('[mqtt]\nurl = "mqtt://h"\n')
    (told,) = problems({}, tmp_path / "sections.toml")
    assert told.startswith("[mqtt] is a section: ")
    (tmp_path / "odd.toml").write_text("BATCH_ROWS = 1\n")
    assert problems({}, tmp_path / "odd.toml") == [
        "BATCH_ROWS is not a setting; did you mean IOV_BATCH_ROWS?"
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("IOV_MQTT_HOST", "IOV_MQTT_URL"),
        ("IOV_MQTT_PORT", "IOV_MQTT_URL"),
        ("IOV_MQTT_USER", "IOV_MQTT_USERNAME"),
        ("IOV_MQTT_PASS", "IOV_MQTT_PASSWORD"),
        ("IOV_BROKER_URL", "IOV_MQTT_URL"),
        ("IOV_DATABASE_HOST", "IOV_DATABASE_URL"),
        ("IOV_POSTGRES_URL", "IOV_DATABASE_URL"),
        ("IOV_DB_DSN", "IOV_DATABASE_URL"),
        ("IOV_HTTP_ADDR", "IOV_HTTP_PORT"),
        ("IOV_LOGLEVEL", "IOV_LOG_LEVEL"),
        ("IOV_mqtt_url", "IOV_MQTT_URL"),
    ],
)
def test_a_name_of_others_leads_to_ours(given: str, meant: str) -> None:
    assert problems({given: "x"}) == [f"{given} is not a setting; did you mean {meant}?"]


def test_other_peoples_variables_are_none_of_ours() -> None:
    load(environ={"PATH": "/bin", "IOVX": "1"})


def test_secrets_never_print() -> None:
    settings = load(
        environ={
            "IOV_MQTT_PASSWORD": "s3cr3t",
            "IOV_DATABASE_URL": "postgresql://u:s3cr3t@h/d",
            "IOV_HTTP_TOKEN": "s3cr3t",
        }
    )
    assert "s3cr3t" not in repr(settings) + str(settings)
    assert settings.database.url == "postgresql://u:s3cr3t@h/d"
    assert settings.broker.secret() == "s3cr3t"


def test_settings_do_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        load(environ={}).batch_rows = 1  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("url", "port"), [("mqtt://b", 1883), ("mqtts://b", 8883), ("ws://b", 80), ("wss://b:9", 9)]
)
def test_each_scheme_has_its_port(url: str, port: int) -> None:
    assert load(environ={"IOV_MQTT_URL": url}).broker.port == port


def test_a_group_makes_the_subscription_shared() -> None:
    assert load(environ={}).broker.subscription == "$share/ingest/iov/v1/+/+"
    assert load(environ={"IOV_MQTT_GROUP": ""}).broker.subscription == "iov/v1/+/+"


def test_long_client_ids_that_begin_alike_have_names_of_their_own_at_the_database() -> None:
    names = {
        Settings(mqtt_client_id="w" * 80 + end).broker.application_name for end in ("-1", "-2")
    }
    assert len(names) == 2
    assert all(len(name) <= 63 for name in names)
    assert Settings(mqtt_client_id="w-1").broker.application_name == "iov-ingest w-1"


def test_a_secret_that_goes_away_while_we_run_is_waited_for(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")
    settings = load(environ={"IOV_MQTT_PASSWORD_FILE": str(secret)})
    assert settings.broker.secret() == "s3cr3t"
    secret.unlink()
    with pytest.raises(Unavailable, match="password file cannot be read"):
        settings.broker.secret()
