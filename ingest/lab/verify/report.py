"""A run's result for people: Markdown, a CSV table with one row per second, a picture."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from statistics import median

import orjson

from ingest.lab.verify.faults import FAULTS
from ingest.lab.verify.plan import Result

_WORST = 10


def text(result: Result, left_out: Mapping[str, str]) -> str:
    """Return the account in Markdown; `left_out` has the reason for each fault not tried."""
    account, plan = result.account, result.plan
    early = "not told by this database" if account.early_acks is None else f"{account.early_acks:,}"
    verdict = "**The promise held.**" if result.ok else "**The promise was broken.**"
    lines = [
        (
            f"{verdict} {result.seconds:.0f} s of load at {plan.rate:g} messages/s, "
            f"{plan.workers} workers, {plan.devices} devices, seed {plan.seed}, "
            f"{len(result.events)} faults."
        ),
        "",
        "| samples | |",
        "| --- | ---: |",
        f"| acknowledged to the publisher | {account.published:,} |",
        f"| of these stored, as rows or as dead letters | {account.stored:,} |",
        f"| **lost** | {account.lost:,} |",
        f"| **stored twice** | {account.duplicated:,} |",
        f"| **altered, or never sent** | {account.altered:,} |",
        f"| **acknowledged before the commit** | {early} |",
        f"| **never acknowledged by a worker** | {account.unacknowledged:,} |",
        f"| lost by the broker with its store, not yet acknowledged | {account.forgotten:,} |",
        f"| dead letters repeated after a lost answer to COMMIT | {account.letters_repeated:,} |",
        f"| workers that ended by themselves | {result.crashes:,} |",
        "",
        "| fault | times | recovery, median s | longest s |",
        "| --- | ---: | ---: | ---: |",
        *_faults(result),
    ]
    lines += [f"\nNot tried: {name}, {why}." for name, why in left_out.items()]
    lines += [f"\nNot well: {what}." for what in result.unwell]
    if account.devices:
        worst = sorted(account.devices.items(), key=lambda item: -item[1].total())[:_WORST]
        lines += ["", "| device | what is wrong |", "| --- | --- |"]
        lines += [f"| {device} | {_words(wrong)} |" for device, wrong in worst]
    return "\n".join(lines) + "\n"


def write(result: Result, left_out: Mapping[str, str], directory: Path) -> list[Path]:
    """Write account, series and, if matplotlib is installed, a picture; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / name for name in ("report.md", "account.json", "series.csv")]
    written[0].write_text(text(result, left_out), encoding="utf-8")
    written[1].write_bytes(orjson.dumps(result.as_json(), option=orjson.OPT_INDENT_2) + b"\n")
    _series(result, written[2])
    try:
        picture = import_module("ingest.lab.verify.picture")
    except ModuleNotFoundError:
        return written
    written.append(directory / "run.png")
    picture.draw(result, written[-1])
    return written


def _faults(result: Result) -> list[str]:
    rows = []
    for fault in result.plan.faults:
        times_s = [
            event.recovered_s - event.mended_s
            for event in result.events
            if event.name == fault.name and event.recovered_s is not None
        ]
        happened = sum(event.name == fault.name for event in result.events)
        took = f"{median(times_s):.1f} | {max(times_s):.1f}" if times_s else " | "
        rows.append(f"| {FAULTS[fault.name].what} (`{fault.name}`) | {happened} | {took} |")
    return rows


def _words(wrong: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in wrong.most_common())


def _series(result: Result, file: Path) -> None:
    workers = range(1, result.plan.workers + 1)
    with file.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(
            ["seconds", "published", "settled"]
            + [f"{what}_{worker}" for worker in workers for what in ("rss_mb", "descriptors")]
        )
        for moment in result.moments:
            resources = [value for pair in moment.resources for value in pair or ("", "")]
            table.writerow([f"{moment.at_s:.1f}", moment.published, moment.settled, *resources])
