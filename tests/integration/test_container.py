"""The container image, built and run for real, with no container engine: buildah, and a chroot.

It is built by `make image` on a Debian of debootstrap's, and runs as it says of itself: its user,
its environment, its entry point, on a root file system that is mounted read-only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.child import child
from ingest.lab.embedded import Mosquitto, free_port
from ingest.lab.until import until
from tests.support import (
    OwnDatabase,
    publish_many,
    sample,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TOOLS = ["buildah", "debootstrap", "unshare", "chroot", "setpriv"]
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
DEBIAN, MONTH_S = "trixie", 30 * 86_400


class Image:
    """The image, its file system mounted somewhere."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self.root = root
        self.config = config

    def command(
        self, *command: str, socket: Path | None = None, **settings: str
    ) -> tuple[list[str], dict[str, str]]:
        """(arguments, environment) to run a command in it; a Unix socket of ours is below /mnt."""
        inside = f"{self.root}/mnt/{socket.name}" if socket else ""
        uid, gid = self.config["User"].split(":")
        nothing = "--clear-groups --no-new-privs --bounding-set=-all"
        steps = [
            f"mount --bind {self.root} {self.root}",
            f"mount --bind /proc {self.root}/proc",
            f"touch {inside}; mount --bind {socket} {inside}" if socket else ":",
            f"mount -o remount,bind,ro {self.root}",
            f'exec chroot {self.root} setpriv --reuid={uid} --regid={gid} {nothing} -- "$@"',
        ]
        environ = dict(line.split("=", 1) for line in self.config["Env"])
        environ |= {f"IOV_{name.upper()}": value for name, value in settings.items()}
        return ["unshare", "--mount", "sh", "-ec", "\n".join(steps), "sh", *command], environ

    def run(
        self, *command: str, socket: Path | None = None, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        arguments, environ = self.command(*command, socket=socket, **settings)
        return subprocess.run(
            arguments, env=environ | {"PATH": f"{environ['PATH']}:/usr/sbin:/sbin"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip


def debian() -> Path:
    """Return a tar of a minimal Debian, which is made once a month and kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iov-ingest"
    tar = cache / f"{DEBIAN}.tar"
    if tar.exists() and time.time() - tar.stat().st_mtime < MONTH_S:
        return tar
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates,python3-venv",
             DEBIAN, f"{made}/root"],
            env=os.environ | {"PATH": SBIN}, check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(["tar", "-C", f"{made}/root", "-cf", f"{made}/tar", "."], check=True)
        Path(made, "tar").rename(tar)
    return tar


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    missing = [tool for tool in TOOLS if shutil.which(tool, path=SBIN) is None]
    if os.geteuid() or missing or not KEYRING.exists():
        pytest.skip(f"needs root, Debian's keyring, and {', '.join(TOOLS)}; not here: {missing}")
    directory = tmp_path_factory.mktemp("container")
    storage = f"--root {directory}/root --runroot {directory}/run --storage-driver vfs"
    buildah = ["buildah", *storage.split()]

    def build(*arguments: str) -> str:
        return subprocess.check_output([*buildah, *arguments], text=True).strip()

    from_scratch = build("from", "scratch")
    build("add", "--quiet", from_scratch, str(debian()), "/")
    # The build trusts whom this machine trusts.
    build("copy", "--quiet", from_scratch, str(CERTIFICATES), str(CERTIFICATES))
    pip_conf = directory / "pip.conf"
    pip_conf.write_text(f"[global]\ncert = {CERTIFICATES}\n")
    build("copy", "--quiet", from_scratch, str(pip_conf), "/etc/pip.conf")
    build("commit", "--quiet", from_scratch, "localhost/base")
    build("rm", from_scratch)
    arguments = (
        "--isolation chroot --format docker --layers=false --pull-never "
        "--build-arg BASE_IMAGE=localhost/base"
    )
    make = ["make", "image", f"CONTAINER_TOOL={' '.join(buildah)}", f"BUILD_ARGS={arguments}"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    container = build("from", "--pull-never", "localhost/iov-ingest")
    config = json.loads(build("inspect", "--type", "image", "localhost/iov-ingest"))
    yield Image(Path(build("mount", container)), config["Docker"]["config"])
    build("umount", container)


def test_the_image_says_what_it_is(image: Image) -> None:
    prefix = "org.opencontainers.image"
    labels = image.config["Labels"]
    assert labels[f"{prefix}.version"] == PROJECT["version"]
    assert labels[f"{prefix}.licenses"] == PROJECT["license"]
    assert labels[f"{prefix}.revision"] not in {"", "unknown"}
    assert image.config["User"] == "65532:65532"
    assert image.config["Entrypoint"] == ["iov-ingest"]
    assert image.config["Cmd"] == ["run"]
    assert list(image.config["ExposedPorts"]) == ["9464/tcp"]


def test_inside_there_is_nobody_to_be_and_nothing_to_write_to(image: Image) -> None:
    whoami = image.run(
        "python3", "-c", "import os; print(os.getuid(), os.getgid(), os.getgroups())"
    )
    assert whoami.stdout.split(None, 2)[:2] == ["65532", "65532"], whoami.stderr
    for place in ("/", "/opt/iov-ingest", "/tmp", "/var/tmp", "/run"):
        written = image.run("sh", "-c", f"echo x > {place}/x")
        assert written.returncode != 0, place
        assert "Read-only file system" in written.stderr, written.stderr
    for tool in ("cc", "gcc", "g++", "make", "pip", "pip3", "git", "curl"):
        assert image.run("sh", "-c", f"command -v {tool}").returncode != 0, tool
    assert image.run("python3", "-m", "pip", "--version").returncode != 0
    release = image.run("iov-ingest", "--version")
    assert release.stdout == f"iov-ingest {PROJECT['version']}\n", release.stderr


async def test_a_worker_works_in_it(image: Image, database: OwnDatabase, broker: Mosquitto) -> None:
    port = str(free_port())
    socket = socket_of(database)
    settings = {
        "mqtt_url": broker.url,
        "mqtt_client_id": "contained",
        "database_url": database.url.replace(database.server.socket_directory, "/mnt"),
        "http_port": port,
    }
    (kind, *health), entry = image.config["Healthcheck"]["Test"], image.config["Entrypoint"]
    assert kind == "CMD"
    assert image.run(*health, http_port=port).returncode != 0
    checked = image.run(*entry, "check", "--json", socket=socket, **settings)
    # The tests' PostgreSQL is quick and not durable; there must be nothing else to say.
    (problem,) = json.loads(checked.stdout)["problems"]
    assert "fsync is off" in problem
    settings["unsafe_database"] = "accept"
    arguments, environ = image.command(*entry, *image.config["Cmd"], socket=socket, **settings)
    path = {"PATH": f"{environ['PATH']}:/usr/sbin:/sbin"}
    worker = await child(*arguments, env=environ | path)
    try:
        await until(
            lambda: image.run(*health, http_port=port).returncode == 0, "a healthy container"
        )
        await publish_many(broker.url, [sample(seq) for seq in range(100)])
        await until(lambda: stored(database, 100), "100 rows")
    finally:
        worker.terminate()
        ended = await worker.wait()
    assert ended == 0


def socket_of(database: OwnDatabase) -> Path:
    (socket,) = Path(database.server.socket_directory).glob(".s.PGSQL.*[0-9]")
    return socket


async def stored(database: OwnDatabase, rows: int) -> bool:
    return await database.count() == rows
