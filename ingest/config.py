"""One frozen settings object, built once from `IOV_*` variables and a TOML file.

Every problem is found before anything starts, and all problems are reported together. The
environment wins over the file. An unknown `IOV_` name is an error in both. Secrets, and URLs that
may hold a secret, are never printed.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ingest.broker import DEFAULT_PORTS, Broker
from ingest.database import Database, url_problems
from ingest.errors import ConfigError, Unavailable

PREFIX = "IOV_"
_LEAST_SILENCE_S = 60
_BATCH_ROWS = 2_000
_WINDOW_BATCHES = 3
"""Number of batches in the window: one being committed, one being filled, one on its way.

Compared with a window of 10,000 messages, this takes 3 MB less, at the same rate (medians 44,100
and 42,500/s) and cost (16.4 and 16.7 µs, three runs).
"""
_BY_ANOTHER_NAME = {
    "BROKER": "MQTT", "DB": "DATABASE", "PG": "DATABASE", "PGSQL": "DATABASE",
    "POSTGRES": "DATABASE", "POSTGRESQL": "DATABASE", "TIMESCALEDB": "DATABASE",
}  # fmt: skip
"""Names that other products use for the two servers, each with the name used here."""
_IN_THE_URL = {"HOST", "HOSTNAME", "PORT", "SERVER", "ADDRESS", "DSN", "URI", "NAME", "SSLMODE"}


def _host_client_id() -> str:
    return "iov-ingest-" + re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())


class Settings(BaseModel):
    """All settings. The environment name of a field is `IOV_` and its name in capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    mqtt_url: str | None = Field(None, description="Broker: mqtt, mqtts, ws or wss://host[:port]")
    mqtt_username: str | None = Field(None, description="User name at the broker")
    mqtt_password: SecretStr | None = Field(None, description="Password at the broker")
    mqtt_password_file: Path | None = Field(None, description="File that holds the password")
    mqtt_ca_file: Path | None = Field(None, description="CA certificates (PEM) for mqtts and wss")
    mqtt_cert_file: Path | None = Field(None, description="Client certificate (PEM), mutual TLS")
    mqtt_key_file: Path | None = Field(None, description="Key of the client certificate (PEM)")
    mqtt_client_id: str = Field(
        default_factory=_host_client_id,
        min_length=1,
        max_length=128,
        description="Stable name of this worker at the broker; default from the host name",
    )
    mqtt_broker_id: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Name of the broker in the register of workers; default host:port of its URL",
    )
    mqtt_group: str = Field("ingest", description="Shared subscription; empty = plain")
    mqtt_topic: str = Field("iov/v1/+/+", description="Topic filter to subscribe to")
    mqtt_client: Literal["auto", "mqtt5", "aiomqtt"] = Field(
        "auto", description="How MQTT is read; auto: mqtt5, or aiomqtt if that is not possible"
    )
    mqtt_receive_maximum: int = Field(
        _WINDOW_BATCHES * _BATCH_ROWS,
        ge=1,
        le=65_535,
        description="Messages in flight the broker is asked to keep to",
    )
    mqtt_session_expiry_s: int = Field(
        86_400, ge=0, le=0xFFFF_FFFF, description="How long the broker keeps the session, seconds"
    )
    database_url: SecretStr | None = Field(
        None, description="Whatever asyncpg accepts, Unix sockets included"
    )
    store: Literal["auto", "postgres", "timescaledb"] = Field(
        "auto", description="auto: hypertables if the timescaledb extension is installed"
    )
    unsafe_database: Literal["refuse", "accept"] = Field(
        "refuse",
        description="accept: be ready although fsync or synchronous_commit is off, "
        "so that what was acknowledged may be lost",
    )
    batch_rows: int = Field(_BATCH_ROWS, ge=1, le=100_000, description="Samples that close a batch")
    batch_wait_ms: int = Field(
        0,
        ge=0,
        le=60_000,
        description="How long an idle writer waits for a batch to fill, milliseconds; 0: none",
    )
    commit_timeout_s: float = Field(
        60, ge=1, le=3_600, description="Longest one attempt to commit a batch may take, seconds"
    )
    stuck_after_s: float = Field(
        60,
        gt=0,
        le=86_400,
        description="Report not ready after this many seconds without a commit while messages are "
        "in flight",
    )
    adopt_after_s: float = Field(
        600,
        ge=0,
        le=604_800,
        description="Take over a worker's session after this many seconds of silence; 0: never",
    )
    max_payload_bytes: int = Field(
        262_144, ge=1, le=16_777_216, description="Largest payload, before inflating"
    )
    max_inflated_bytes: int = Field(
        4_194_304, ge=1, le=67_108_864, description="Largest payload, after inflating"
    )
    max_samples: int = Field(1_000, ge=1, le=100_000, description="Samples in one message")
    max_values: int = Field(
        300_000, ge=1_000, le=100_000_000,
        description="Values in one message; a member counts as 2, an array or object as 4 more",
    )  # fmt: skip
    max_sample_values: int = Field(
        100_000, ge=1_000, le=100_000_000, description="The same for one sample"
    )
    max_age_days: float = Field(30, gt=0, le=36_500, description="Older samples are `too_old`")
    max_ahead_s: float = Field(
        300, ge=0, le=86_400, description="Samples further ahead are `clock_ahead`"
    )
    refused_fields: Literal["set_aside", "reject"] = Field(
        "set_aside",
        description="An optional value that the schema refuses: set_aside costs its field, reject "
        "its sample",
    )
    dead_letters_per_minute: int = Field(
        600,
        ge=0,
        le=1_000_000_000,
        description="Dead letters stored per device per minute; the rest are only counted",
    )
    dead_letter_bytes_per_minute: int = Field(
        1_048_576,
        ge=0,
        le=1_000_000_000_000,
        description="The same limit in bytes; the first one of a minute is always stored",
    )
    dead_letter_unreadable: Literal["digest", "payload"] = Field(
        "digest",
        description="What is kept of a message that cannot be taken apart: size and digest, or "
        "all of it, private or not",
    )
    digest_key_file: Path | None = Field(
        None,
        description="Secret key of at least 32 bytes for the digests that stand for ICCIDs and "
        "drivers; without it they can be guessed",
    )
    gbt32960_units_file: Path | None = Field(
        None,
        description="Custom units (0x80 to 0xFE) of GB/T 32960 frames, as JSON; others are kept "
        "as hexadecimal",
    )
    retention_file: Path | None = Field(
        None, description="How many days rows are kept, in TOML; for `migrate` and `maintain`"
    )
    schema_dir: Path | None = Field(None, description="Schemas; default: those of the product")
    http_host: str = Field("0.0.0.0", description="Where HTTP listens")  # noqa: S104  a scraper comes from outside
    http_port: int = Field(9464, ge=0, le=65_535, description="0: any free port")
    http_token: SecretStr | None = Field(
        None, description="Token that lets other hosts see devices and details"
    )
    log_format: Literal["logfmt", "json"] = Field("logfmt", description="Form of a log line")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level"
    )

    @field_validator("mqtt_url")
    @classmethod
    def _mqtt_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("is not a URL like mqtt://host:1883") from None
        if parts.scheme not in DEFAULT_PORTS:
            raise ValueError("must begin with mqtt://, mqtts://, ws:// or wss://")
        if not host:
            raise ValueError("names no host")
        if parts.username or parts.password:
            raise ValueError("must hold no user or password: use IOV_MQTT_USERNAME and _PASSWORD")
        return url

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        if not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql:// or postgres://")
        if problems := url_problems(url.get_secret_value()):
            raise ValueError("; ".join(problems))
        return url

    @field_validator("mqtt_group")
    @classmethod
    def _mqtt_group(cls, group: str) -> str:
        if set(group) & set("/+#"):
            raise ValueError("must not hold / + or # (MQTT 5, 4.8.2)")
        return group

    @field_validator("mqtt_topic")
    @classmethod
    def _mqtt_topic(cls, topic: str) -> str:
        levels = topic.split("/")
        wrong = not topic or "\0" in topic or topic.startswith("$share/")
        wrong = wrong or any("#" in level for level in levels[:-1])
        wrong = wrong or any(set(level) & set("+#") and len(level) > 1 for level in levels)
        if wrong:
            raise ValueError("is not a topic filter (MQTT 5, 4.7); the group has its own setting")
        return topic

    @field_validator(
        "mqtt_password_file", "mqtt_ca_file", "mqtt_cert_file", "mqtt_key_file", "retention_file"
    )
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            raise ValueError(f"{path} cannot be read")
        return path

    @model_validator(mode="after")
    def _between_fields(self) -> Self:
        wrong = []
        if self.mqtt_password and self.mqtt_password_file:
            wrong.append("IOV_MQTT_PASSWORD and IOV_MQTT_PASSWORD_FILE exclude each other")
        if bool(self.mqtt_cert_file) != bool(self.mqtt_key_file):
            wrong.append("IOV_MQTT_CERT_FILE and IOV_MQTT_KEY_FILE need each other")
        if self.mqtt_url:
            scheme = self.broker.scheme
            if scheme in {"mqtt", "ws"} and (self.mqtt_ca_file or self.mqtt_cert_file):
                wrong.append("IOV_MQTT_CA_FILE and _CERT_FILE need mqtts:// or wss://")
            if scheme in {"ws", "wss"} and self.mqtt_client == "mqtt5":
                wrong.append("IOV_MQTT_CLIENT=mqtt5 reads mqtt:// and mqtts:// only")
        if self.max_inflated_bytes < self.max_payload_bytes:
            wrong.append("IOV_MAX_INFLATED_BYTES must not be below IOV_MAX_PAYLOAD_BYTES")
        if 0 < self.adopt_after_s < _LEAST_SILENCE_S:
            wrong.append(
                f"IOV_ADOPT_AFTER_S must be 0 or at least {_LEAST_SILENCE_S}: "
                "a worker is heard of every 5 s"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @property
    def broker(self) -> Broker:
        """Settings of the broker, for the code that connects to it."""
        secret = self.mqtt_password
        return Broker(
            url=self.mqtt_url,
            client_id=self.mqtt_client_id,
            group=self.mqtt_group,
            topic=self.mqtt_topic,
            client=self.mqtt_client,
            receive_maximum=self.mqtt_receive_maximum,
            session_expiry_s=self.mqtt_session_expiry_s,
            max_payload_bytes=self.max_payload_bytes,
            name=self.mqtt_broker_id,
            username=self.mqtt_username,
            password=secret.get_secret_value() if secret else None,
            password_file=self.mqtt_password_file,
            ca_file=self.mqtt_ca_file,
            cert_file=self.mqtt_cert_file,
            key_file=self.mqtt_key_file,
        )

    @property
    def database(self) -> Database:
        """Settings of the database, for the code that connects to it."""
        assert self.database_url is not None
        return Database(self.database_url.get_secret_value())


def load(
    file: Path | None = None,
    *,
    needs: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings from the environment and `file`; raise ConfigError with every problem.

    `needs` are the `IOV_` names that the command cannot work without.
    """
    names = {PREFIX + field.upper(): field for field in Settings.model_fields}
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    from_file = _read(file, problems) if file else {}
    if problems:
        # Settings that seem to be missing may be in the file that cannot be read.
        raise ConfigError(problems)
    given = from_file | {n: v for n, v in environ.items() if n.startswith(PREFIX)}
    unknown = sorted(given.keys() - names.keys())
    problems += [
        f"[{name}] is a section: settings stand above all sections, by their whole names"
        if isinstance(given[name], dict)
        else f"{name} is not a setting{_nearest(name, names)}"
        for name in unknown
    ]
    values = {names[n]: v for n, v in given.items() if n in names}
    try:
        settings = Settings(**values)
        if settings.mqtt_url and not problems:
            settings.broker.tls()
    except ValidationError as exc:
        problems += _sentences(exc)
    except Unavailable as exc:
        problems.append(str(exc))
    problems += [f"{name} is not set" for name in sorted(needs) if not given.get(name)]
    if problems:
        raise ConfigError(problems)
    return settings


def _read(file: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as exc:
        problems.append(f"{file} cannot be read: {exc.strerror}")
    except tomllib.TOMLDecodeError as exc:
        problems.append(f'{file} is not TOML: {exc}; a line is NAME = "text" or NAME = 5')
    except UnicodeDecodeError as exc:
        problems.append(f"{file} is not TOML: byte {exc.start} is not UTF-8")
    return {}


def _nearest(name: str, names: Collection[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  only on the way to an error

    name = name.upper()
    _, about, *words = (name if name.startswith(PREFIX) else PREFIX + name).split("_")
    about = _BY_ANOTHER_NAME.get(about, about)
    meant = "_".join(("IOV", about, *words))
    # For IOV_MQTT_HOST, a setting of the same server is suggested before IOV_HTTP_HOST.
    same = [other for other in names if other.startswith(f"IOV_{about}_")]
    url = f"IOV_{about}_URL"
    if url in same and words and words[-1] in _IN_THE_URL:
        near = [url]
    else:
        near = [other for other in same if other.startswith(meant)]
        near += get_close_matches(meant, same, n=1) or get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _sentences(exc: ValidationError) -> list[str]:
    """Return one sentence per problem, with the environment name and without the given value."""
    sentences = []
    for error in exc.errors(include_url=False, include_input=False, include_context=False):
        text = error["msg"].removeprefix("Value error, ")
        if error["loc"]:
            sentences.append(f"{PREFIX}{str(error['loc'][0]).upper()}: {text}")
        else:
            sentences += text.split("\n")
    return sentences
