from __future__ import annotations

import gzip
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mqtt5
import orjson
import pytest

from ingest.check import Checker
from ingest.config import Settings
from ingest.lab.verify import FAULTS, FaultPlan, Result, report
from ingest.lab.verify.account import Account, Accounting, Found, columns
from ingest.lab.verify.ledger import REFUSED, STREAMS, Ledger
from ingest.lab.verify.plan import Event, Moment
from ingest.lab.verify.servers import address, through
from ingest.lab.verify.tap import PROPERTY, Tap
from ingest.model import Row
from ingest.schema import load_catalogue
from tests.support import delivery

START = datetime(2026, 11, 22, 10, tzinfo=UTC)
SETTLED_S, BEFORE_S, AFTER_S = 1_000.0, 999.0, 1_001.0


def ledger_of(messages: int, *, settled: bool = True, seed: int = 1) -> Ledger:
    ledger = Ledger(seed, 3, START)
    for _ in range(messages):
        number = ledger.issue().number
        ledger.acknowledged(number)
        if settled:
            ledger.settle(number, SETTLED_S)
    return ledger


def everything(ledger: Ledger, committed_s: float = BEFORE_S) -> tuple[list[Found], list[Found]]:
    """(rows, letters) as they should be."""
    rows, letters = [], []
    for (device, stream), numbers in ledger.numbers.items():
        for seq in range(len(numbers)):
            sample = ledger.sample(device, stream, seq)
            if ledger.is_bad(sample):
                letters.append(Found(device, stream, seq, sample, committed_s, "bad_timestamp"))
            else:
                rows.append(Found(device, stream, seq, columns(sample), committed_s))
    return rows, letters


def account(ledger: Ledger, rows: list[Found], letters: list[Found]) -> Account:
    accounting = Accounting(ledger)
    for found in rows:
        accounting.row(found)
    for found in letters:
        accounting.letter(found)
    return accounting.close()


def test_the_same_seed_issues_the_same_messages() -> None:
    def first(seed: int) -> list[bytes]:
        ledger = Ledger(seed, 5, START)
        return [ledger.issue().payload for _ in range(200)]

    assert first(7) == first(7)
    assert first(7) != first(8)


def test_what_it_issues_is_what_the_schemas_take_or_refuse() -> None:
    """Good, bad, late, arrays and packed ones, of both streams and every device."""
    ledger, checker = Ledger(1, 7, START), Checker.of(load_catalogue(), Settings())
    kinds: set[tuple[str, bool, bool]] = set()
    late = bad = aside = 0
    for _ in range(3_000):
        issued = ledger.issue()
        topic = f"iov/v1/{issued.device}/{issued.stream}"
        checked = checker.check(delivery(issued.payload, topic, encoding=issued.encoding, at=START))
        kinds.add((issued.stream, issued.encoding is None, len(checked.outcomes) > 1))
        text = gzip.decompress(issued.payload) if issued.encoding else issued.payload
        document = orjson.loads(text)
        samples = document if isinstance(document, list) else [document]
        for sample, outcome in zip(samples, checked.outcomes, strict=True):
            assert isinstance(outcome, Row) != ledger.is_bad(sample)
            if not isinstance(outcome, Row):
                bad += 1
                continue
            assert bool(outcome.refused_fields) == (REFUSED in sample)
            aside += len(outcome.refused_fields)
            late += datetime.fromisoformat(sample["ts"]) < START - timedelta(hours=1)
    assert len(kinds) == 2 * len(STREAMS) * 2
    assert bad > 20
    assert aside > 20
    assert late > 5


def test_all_there_is_all_well() -> None:
    ledger = ledger_of(500)
    found = account(ledger, *everything(ledger))
    assert found.holds
    assert found.published == found.stored == sum(map(len, ledger.numbers.values()))
    assert not found.devices


def test_what_is_missing_is_lost_unless_it_was_never_acknowledged() -> None:
    ledger = ledger_of(200)
    rows, letters = everything(ledger)
    missing = rows.pop()
    ledger.issue()  # never acknowledged to the publisher, and not there
    found = account(ledger, rows, letters)
    assert (found.lost, found.stored) == (1, found.published - 1)
    assert not found.holds
    assert found.devices[missing.device]["lost"] == 1


def test_what_the_broker_lost_is_forgotten_unless_we_had_acknowledged_it() -> None:
    ledger = ledger_of(20, settled=False)
    assert ledger.forget() == 20
    ledger.settle(5, SETTLED_S)  # acknowledged after all: then it must be there
    found = account(ledger, [], [])
    assert found.lost >= 1
    assert found.forgotten == found.published - found.lost


def test_twice_is_duplicated_and_a_letter_twice_is_repeated() -> None:
    ledger = ledger_of(400)
    rows, letters = everything(ledger)
    found = account(ledger, [*rows, rows[3]], [*letters, letters[0]])
    assert (found.duplicated, found.letters_repeated) == (1, 1)
    assert not found.holds


@pytest.mark.parametrize("how", ["value", "missing", "more", "unknown device", "unknown seq"])
def test_other_than_sent_is_altered(how: str) -> None:
    ledger = ledger_of(100)
    rows, letters = everything(ledger)
    first = rows[0]
    changes: dict[str, dict[str, Any]] = {
        "value": {"values": first.values | {"extra": {"nonce": "0"}}},
        "missing": {"values": {k: v for k, v in first.values.items() if k != "extra"}},
        "more": {"values": first.values | {"trip_id": "t"}},
        "unknown device": {"device": "somebody"},
        "unknown seq": {"seq": 9_999},
    }
    found = account(ledger, [*rows[1:], first._replace(**changes[how])], letters)
    assert found.altered == 1
    assert not found.holds


def test_a_bad_sample_in_the_table_and_a_good_one_refused_are_altered() -> None:
    ledger = ledger_of(400)
    rows, letters = everything(ledger)
    good = letters[0].values | {"ts": START.isoformat()}
    wrong_row = letters[0]._replace(values=columns(good))
    sample = ledger.sample(rows[0].device, rows[0].stream, rows[0].seq)
    wrong_letter = rows[0]._replace(values=sample)
    found = account(ledger, [*rows[1:], wrong_row], [*letters[1:], wrong_letter])
    assert found.altered == 2
    assert found.lost == 1  # the good one is not in its table


def test_a_good_one_refused_is_kept_where_its_day_was_closed_and_only_there() -> None:
    ledger = ledger_of(400)
    rows, letters = everything(ledger)
    first = next(row for row in rows if row.stream == "nev")

    def refused(row: Found, reason: str = "refused_by_store") -> Found:
        sample = ledger.sample(row.device, row.stream, row.seq)
        return row._replace(values=sample, reason=reason)

    day = first.values["ts"].date()
    ledger.close_day("nev", day)
    rest = [row for row in rows if row is not first]
    found = account(ledger, rest, [*letters, refused(first)])
    assert found.holds
    assert found.stored == found.published
    # A letter as well as a row is what a commit whose answer was lost leaves.
    found = account(ledger, rows, [*letters, refused(first)])
    assert (found.holds, found.letters_repeated) == (True, 1)
    assert account(ledger, rest, [*letters, refused(first, "schema")]).altered == 1
    before = first.values["ts"] - timedelta(days=1)
    assert not ledger.may_be_letter("nev", {"ts": before.isoformat()})
    assert not ledger.may_be_letter("battery", {"ts": first.values["ts"].isoformat()})


def test_visitors_are_no_debts_and_strangers_are_no_visitors() -> None:
    ledger = ledger_of(50)
    rows, letters = everything(ledger)
    numbers = [ledger.visitor("visitor-dear"), ledger.visitor("visitor-dear")]
    assert numbers == [-1, -2]
    ledger.settle(-2, SETTLED_S)
    assert ledger.visitors_settled == {-2}
    assert ledger.settled == 50
    visitor = rows[0]._replace(device="visitor-dear", values={})
    assert account(ledger, [*rows, visitor], [*letters, visitor]).holds
    assert account(ledger, rows, letters).lost == 1
    assert account(ledger, [*rows, visitor._replace(device="dear")], letters).altered == 1


def test_a_message_comes_again_as_it_was_and_is_counted() -> None:
    ledger = Ledger(1, 3, START)
    first = [ledger.issue() for _ in range(60)]
    assert [ledger.message(issued.number) for issued in first] == first
    for issued in (first[7], first[7], first[7]):
        ledger.settle(issued.number, SETTLED_S)
    assert (ledger.settled, ledger.repeated) == (1, 2)


def test_a_bad_sample_is_a_dead_letter_for_the_right_reason() -> None:
    ledger = ledger_of(400)
    rows, letters = everything(ledger)
    wrong = letters[0]._replace(reason="schema")
    assert account(ledger, rows, [*letters[1:], wrong]).altered == 1


def test_a_commit_after_the_acknowledgement_is_too_early_an_acknowledgement() -> None:
    ledger = ledger_of(100)
    rows, letters = everything(ledger)
    rows[0] = rows[0]._replace(committed_s=AFTER_S)
    found = account(ledger, rows, letters)
    assert found.early_acks == 1
    assert not found.holds


def test_what_is_stored_and_never_acknowledged_is_not_well() -> None:
    ledger = ledger_of(20, settled=False)
    for number in range(19):
        ledger.settle(number, SETTLED_S)
    found = account(ledger, *everything(ledger))
    assert found.unacknowledged >= 1
    assert not found.holds


def test_a_database_that_keeps_no_commit_times_tells_nothing() -> None:
    ledger = ledger_of(100)
    rows, letters = everything(ledger)
    found = account(ledger, [row._replace(committed_s=None) for row in rows], letters)
    assert found.early_acks is None
    assert found.holds


def test_a_tap_knows_which_message_a_puback_is_for() -> None:
    settled: list[int] = []
    subscriptions: list[int] = []
    complaints: list[str] = []
    tap = Tap(
        lambda number, _: settled.append(number),
        lambda: subscriptions.append(1),
        complaints.append,
    )
    request, answer = tap.listener()
    at_least_once = mqtt5.QoS.AT_LEAST_ONCE
    stream = mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]).write()
    stream += mqtt5.PublishPacket(
        "t", b"x", qos=at_least_once, packet_id=9, user_properties=[("another", "property")]
    ).write()
    for number in range(3):
        stream += mqtt5.PublishPacket(
            "t", b"x", qos=at_least_once, packet_id=number + 10,
            user_properties=[(PROPERTY, str(number + 500))],
        ).write()  # fmt: skip
    for at in range(0, len(stream), 7):
        answer(stream[at : at + 7])
    request(mqtt5.PubAckPacket(9).write())
    request(mqtt5.PubAckPacket(11).write() + mqtt5.PubAckPacket(99).write())
    request(mqtt5.PubAckPacket(11).write())  # the identifier is free again
    assert (settled, subscriptions, complaints) == ([501], [1], [])
    request(b"\xff" * 20)
    request(mqtt5.PubAckPacket(12).write())
    assert len(complaints) == 1  # and a run with a deaf tap is not well


def test_a_schedule_follows_from_its_seed_and_leaves_no_fault_out() -> None:
    faults = list(FAULTS.values())
    plan = FaultPlan(faults, duration_s=30, every_s=20, seed=5)
    assert plan.schedule() == FaultPlan(faults, duration_s=30, every_s=20, seed=5).schedule()
    assert {due.fault.name for due in plan.schedule()} == set(FAULTS)
    long = FaultPlan(faults, duration_s=3_600, every_s=20, seed=5).schedule()
    assert 150 < len(long) < 210
    assert long[-1].at_s < 3_600
    assert plan.schedule() != FaultPlan(faults, duration_s=30, every_s=20, seed=6).schedule()
    assert FaultPlan([], duration_s=30).schedule() == []


def result_of(found: Account) -> Result:
    plan = FaultPlan([FAULTS["broker_cut"], FAULTS["disk_full"]], workers=2)
    events = [Event("broker_cut", 1.0, 2.0, 2.5), Event("broker_cut", 5.0, 6.0, 8.0)]
    moments = [
        Moment(float(second), second * 10, second * 9, [(80.0, 20), None]) for second in range(10)
    ]
    return Result(plan, found, 10.0, events, moments, crashes=0)


def test_the_account_in_json_has_the_keys_of_the_contract() -> None:
    told = result_of(Account(published=10, stored=9, lost=1)).as_json()
    assert list(told)[:8] == [
        "published", "stored", "lost", "duplicated", "altered", "early_acks", "faults",
        "recovery_s",
    ]  # fmt: skip
    assert told["faults"] == {"broker_cut": 2, "disk_full": 0}
    assert told["recovery_s"] == {"p50": 1.25, "max": 2.0}


def test_the_report_says_what_was_and_what_was_not_tried(tmp_path: Path) -> None:
    bad = Account(published=10, stored=9, lost=1)
    bad.devices["V7"] = Counter(lost=1)
    written = report.write(result_of(bad), {"disk_full": "no mount"}, tmp_path)
    assert [file.name for file in written] == [
        "report.md", "account.json", "series.csv", "run.png",
    ]  # fmt: skip
    text = written[0].read_text()
    assert "**The promise was broken.**" in text
    assert "| V7 | lost 1 |" in text
    assert "Not tried: disk_full, no mount." in text
    assert len(written[2].read_text().splitlines()) == 11
    assert written[3].read_bytes().startswith(b"\x89PNG")
    good = report.text(result_of(Account(published=10, stored=10)), {})
    assert "**The promise held.**" in good


@pytest.mark.parametrize(
    ("url", "where", "by_proxy"),
    [
        (
            "postgresql://u:p@db.example.org:5433/x?sslmode=require",
            ("db.example.org", 5433, None),
            "postgresql://u:p@127.0.0.1:9/x?sslmode=require",
        ),
        (
            "postgresql://postgres:@/x?host=/run/pg",
            (None, None, "/run/pg/.s.PGSQL.5432"),
            "postgresql://postgres:@127.0.0.1:9/x?sslmode=disable",
        ),
        (
            "postgresql:///x?host=h&port=6",
            ("h", 6, None),
            "postgresql://127.0.0.1:9/x",
        ),
    ],
)
def test_a_database_is_reached_through_its_proxy(
    url: str, where: tuple[Any, Any, Any], by_proxy: str
) -> None:
    assert address(url) == where
    assert through(url, 9) == by_proxy
