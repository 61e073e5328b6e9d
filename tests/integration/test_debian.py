"""A bare Debian: from `git clone` to rows by README's commands, and docs/start.md line by line.

Takes some minutes and root, so it is asked for: `make debian`. A root is made by debootstrap; for
start.md a systemd of its own runs in it, in namespaces of its own but for the network.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIRECTORY = os.environ.get("DEBIAN_ROOT")
SUITE = os.environ.get("DEBIAN_SUITE", "bookworm")
pytestmark = [
    pytest.mark.skipif(not DIRECTORY, reason="takes minutes and root: make debian"),
    pytest.mark.timeout(3_600),
]
OF_README = ("git", "make", "python3-venv")
"""Packages that README's first line has installed; with certificates, which a minbase has not."""
OF_THE_HOST = ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
"""Files by which this machine reaches the servers of packages."""
STEP_S = 600
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Root's on a Debian."""
CGROUP = Path("/sys/fs/cgroup")


def run(command: list[str], *, status: int | None = 0, env: dict[str, str] | None = None) -> str:
    """Run one, with what it printed if it ends otherwise."""
    ended = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False, timeout=STEP_S, env=env,
    )  # fmt: skip
    assert status in (None, ended.returncode), ended.stdout[-4_000:]
    return str(ended.stdout)


@contextmanager
def made(name: str, *packages: str) -> Iterator[Path]:
    """A Debian with some packages and a clone of this repository in /srv/iov-ingest."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap")
    assert DIRECTORY is not None
    root = Path(DIRECTORY) / f"{SUITE}-{name}"
    if not (root / "made").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        run(["debootstrap", "--variant=minbase", SUITE, str(root)])
        with mounted(root):
            for file in OF_THE_HOST[:3]:
                copied(root, file)
            run(["chroot", str(root), "apt-get", "update"])
            run(["chroot", str(root), "apt-get", "install", "--yes", "--no-install-recommends",
                 "ca-certificates", *packages])  # fmt: skip
            run(["chroot", str(root), "useradd", "--create-home", "somebody"])
            (root / "made").touch()
    # What is made once is only ever copied, so each test finds it as it was.
    with tempfile.TemporaryDirectory(dir=DIRECTORY, ignore_cleanup_errors=True) as directory:
        run(["cp", "--archive", "--reflink=auto", str(root), directory])
        copy = Path(directory) / root.name
        copied(copy, OF_THE_HOST[3])
        clone = str(copy / "srv" / "iov-ingest")
        run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), clone])
        yield copy


def copied(root: Path, name: str) -> None:
    there = Path("/") / name
    if there.exists():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).unlink(missing_ok=True)
        shutil.copyfile(there, root / name)


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    with ExitStack() as stack:
        for name, how in (("proc", ["-t", "proc", "proc"]), ("dev", ["--rbind", "/dev"])):
            run(["mount", *how, str(root / name)])
            run(["mount", "--make-rprivate", str(root / name)])
            stack.callback(run, ["umount", "--recursive", "--lazy", str(root / name)])
        yield


def environment(home: str) -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or "PIP_" in k}
    return passed | {"HOME": home, "PATH": _PATH, "LANG": "C.UTF-8"}


@pytest.mark.parametrize("user", ["somebody", "root"])
def test_from_clone_to_the_first_rows_in_two_commands(user: str) -> None:
    with made("demo", *OF_README) as root, mounted(root):
        home = Path("/home/somebody" if user == "somebody" else "/root")
        inside = root / home.relative_to("/")
        (root / "srv" / "iov-ingest").rename(inside / "iov-ingest")
        owner = pwd.getpwuid(inside.stat().st_uid)
        run(["chown", "--recursive", f"{owner.pw_uid}:{inside.stat().st_gid}", str(inside)])
        began_s = time.monotonic()
        printed = run(
            ["chroot", f"--userspec={user}", str(root), "sh", "-c",
             f'cd {home}/iov-ingest && make demo ARGS="--duration 8 --json"'],
            env=environment(str(home)),
        )  # fmt: skip
        account = json.loads(printed.strip().splitlines()[-1])
        assert account["lost"] == 0
        assert account["stored"] > 0
        # For whoever reads along; a slow machine is no fault.
        took_s = time.monotonic() - began_s
        sys.stdout.write(f"{user}: {took_s:.0f} s from make demo to {account}\n")
        size = run(["du", "--summarize", "--block-size=1M", str(inside / "iov-ingest" / ".venv")])
        assert int(size.split()[0]) < 250


@contextmanager
def booted(root: Path) -> Iterator[list[str]]:
    """A systemd at work in a root; what to put before a command to run it there."""
    group = CGROUP / "systemd" / "iov-test"
    if (CGROUP / "cgroup.controllers").exists():
        group = CGROUP / "iov-test"
    elif not group.parent.exists():
        pytest.skip("no cgroups for a systemd")
    group.mkdir(exist_ok=True)
    inside = "/sys/fs/cgroup" + ("/systemd" if group.parent.name == "systemd" else "")
    script = f"""
set -e
cd {root}
mount --bind . . && cd {root}
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
mkdir -p .{inside}
mount --bind {group} .{inside}
mount -t tmpfs -o mode=755 tmpfs run
mount --rbind /dev dev
# As a manager of containers does, or credentials do not reach their service.
mount --make-rshared .
echo $$ > {group}/cgroup.procs
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd
"""
    process = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child",
         "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: children.read_text().split(), "a first process")
        first = children.read_text().split()[0]
        enter = ["nsenter", "--mount", "--pid", "--uts", "--ipc", f"--target={first}", "chroot",
                 str(root)]  # fmt: skip

        def up() -> bool:
            state = run([*enter, "systemctl", "is-system-running"], status=None)
            return state.strip() in {"running", "degraded"}

        until(up, "systemd")
        yield enter
    finally:
        process.kill()
        process.wait()


def until(condition: object, what: str) -> None:
    assert callable(condition)
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < 60, f"waited in vain for {what}"
        time.sleep(0.1)


def test_start_md_line_by_line() -> None:
    page = (ROOT / "docs" / "start.md").read_text()
    section = page[page.index("## On a Debian machine") : page.index("## With Docker")]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    with made("start", "systemd-sysv") as root, booted(root) as enter:
        printed = []
        for block in blocks:
            script = f"set -eu\ncd /srv/iov-ingest\n{block}"
            printed.append(run([*enter, "sh", "-c", script], env=environment("/root")))
        *_, checked, ready, rows, simulated = printed
        assert "are fine" in checked, checked
        assert '"ready":true' in ready.replace(" ", ""), ready
        assert "LSVNV2182E2100001" in rows, rows
        assert "46.8" in rows, rows
        assert "acknowledged" in simulated, simulated
        for number in (1, 2):
            state = run([*enter, "systemctl", "is-active", f"iov-ingest@{number}"])
            assert state.strip() == "active"
        count = "psql telemetry -Atc 'SELECT count(*) FROM iov.nev'"
        until(lambda: int(run([*enter, "su", "postgres", "-c", count])) > 100, "the city's rows")
        # The journal has levels, and no time of ours beside its own.
        lines = run([*enter, "journalctl", "-o", "json", "-u", "iov-ingest@1"]).splitlines()
        told = [json.loads(line) for line in lines if '"event=' in line or "event=" in line]
        assert {line["PRIORITY"] for line in told} >= {"6"}
        assert not any("timestamp=" in line["MESSAGE"] for line in told)
        a_setting_that_was_wrong_is_mended(enter)
        # A worker that shall not come back, as docs/alerts.md says.
        run([*enter, "systemctl", "stop", "iov-ingest@2"])
        host = run([*enter, "hostname"]).strip()
        drained = run([
            *enter, "iov-ingest", "leave", "--client-id", f"iov.ingest-{host}-2",
            "--config", "/etc/iov-ingest/iov-ingest.toml",
        ])  # fmt: skip
        assert "messages" in drained, drained


def a_setting_that_was_wrong_is_mended(enter: list[str]) -> None:
    """Nothing has to be reset, however often it was tried."""
    file, unit = "/etc/iov-ingest/iov-ingest.toml", "iov-ingest@1"
    run([*enter, "sh", "-c", f"echo 'IOV_MQTT_TOPC = 1' >>{file}"])
    run([*enter, "systemctl", "restart", unit])
    until(
        lambda: run([*enter, "systemctl", "is-failed", unit], status=None).strip() == "failed",
        "the end of a worker with a wrong setting",
    )
    told = run([*enter, "journalctl", "--unit", unit, "--output", "cat"])
    assert "did you mean IOV_MQTT_TOPIC?" in told
    restarts = run([*enter, "systemctl", "show", "--property", "NRestarts", "--value", unit])
    assert restarts.strip() == "0"
    run([*enter, "sed", "-i", "/TOPC/d", file])
    run([*enter, "systemctl", "restart", unit])
    assert run([*enter, "systemctl", "is-active", unit]).strip() == "active"
