from __future__ import annotations

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model import Reason
from ingest.source.packets import PacketReader, Unreadable, packet_size, unreadable

SIZES = st.lists(st.integers(0, 3_000), max_size=12)


def publish(size: int, number: int) -> bytes:
    return mqtt5.PublishPacket(
        "iov/v1/V1/nev", b"x" * size, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=number
    ).write()


def feed(reader: PacketReader, data: bytes) -> list[mqtt5.Packet | Unreadable]:
    free = reader.free()
    assert len(free) >= len(data)
    free[: len(data)] = data
    return reader.filled(len(data))


@given(SIZES, st.lists(st.integers(1, 4_000), min_size=1, max_size=8))
def test_packets_come_whole_and_in_order_however_the_bytes_are_cut(
    sizes: list[int], cuts: list[int]
) -> None:
    stream = b"".join(publish(size, n + 1) for n, size in enumerate(sizes))
    reader, found, position, turn = PacketReader(4_096), [], 0, 0
    while position < len(stream):
        cut = cuts[turn % len(cuts)]
        found += feed(reader, stream[position : position + cut])
        position, turn = position + cut, turn + 1
    numbers = [p.packet_id for p in found if isinstance(p, mqtt5.PublishPacket)]
    payloads = [len(p.payload) for p in found if isinstance(p, mqtt5.PublishPacket)]
    assert numbers == list(range(1, len(sizes) + 1))
    assert payloads == sizes


def test_there_is_always_room_to_read_into() -> None:
    reader = PacketReader(1_000)
    whole = publish(900, 1)
    assert feed(reader, whole[:-1]) == []
    assert len(reader.free()) > 0
    assert len(feed(reader, whole[-1:])) == 1


@pytest.mark.parametrize(
    "junk", [b"\x00\x00", b"\xf5\x00", b"\x20\x02\x00\x01", b"\x30\xff\xff\xff\xff"]
)
def test_what_is_no_packet_is_malformed(junk: bytes) -> None:
    reader = PacketReader(1_000)
    assert feed(reader, junk) == []
    assert "malformed packet" in str(reader.malformed)


def test_a_packet_above_the_limit_is_not_waited_for() -> None:
    reader = PacketReader(1_000)
    feed(reader, publish(2_000, 1)[:10])
    assert "above the Maximum Packet Size" in str(reader.malformed)


def test_what_came_before_a_malformed_packet_is_handed_over() -> None:
    reader = PacketReader(1_000)
    assert len(feed(reader, publish(5, 1) + b"\xf5\x00")) == 1
    assert reader.malformed is not None


NOT_UTF_8 = {
    "topic": bytes.fromhex("32 0a 0002 ffff 0007 00 313233"),
    "a user property": bytes.fromhex("32 12 0003 612f62 0007 07 26 0001 ff 0001 61 313233"),
    "content type, QoS 0": bytes.fromhex("30 0d 0003 612f62 04 03 0001 ff 313233"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the codec's
@pytest.mark.parametrize("what", NOT_UTF_8)
@pytest.mark.parametrize("cut", range(1, 15))
def test_a_publish_with_text_that_is_not_utf_8_is_skipped_by_its_length(
    what: str, cut: int
) -> None:
    reader, bad = PacketReader(1_000), NOT_UTF_8[what]
    stream = publish(5, 1) + bad + publish(6, 2)
    at = len(publish(5, 1)) + cut
    first, found, last = feed(reader, stream[:at]) + feed(reader, stream[at:])
    assert reader.malformed is None
    assert isinstance(found, Unreadable)
    assert found.payload == b"123"
    assert found.packet_id == (None if "QoS 0" in what else 7)
    wanted = Reason.BAD_TOPIC if what == "topic" else Reason.BAD_ENCODING
    assert found.fault.reason is wanted
    assert isinstance(first, mqtt5.PublishPacket)
    assert isinstance(last, mqtt5.PublishPacket)
    assert (first.packet_id, last.packet_id) == (1, 2)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_publish_with_an_odd_length_is_read_alike_however_it_is_cut(cut: int) -> None:
    """A length written longer than need be (MQTT 5, 1.5.5), which the codec refuses at once."""
    odd = bytes.fromhex("32 8c00 0003 612f62 0007 00 31323334")

    def read(*pieces: bytes) -> tuple[list[str], bool]:
        reader, found = PacketReader(1_000), []
        for piece in pieces:
            found += [repr(packet) for packet in feed(reader, piece)]
        return found, reader.malformed is not None

    assert read(odd[:cut], odd[cut:]) == read(odd)


@pytest.mark.parametrize(
    "broken",
    ["32 05 00ff 6162", "36 09 0001 61 0007 00 3132", "32 06 0001 61 0007 7f", "40 02 0007"],
)
def test_a_publish_whose_lengths_do_not_fit_cannot_be_skipped(broken: str) -> None:
    packet = bytes.fromhex(broken)
    assert unreadable(packet[0], packet[2:]) is None


@given(st.binary(max_size=60))
def test_whatever_can_be_told_of_a_packet_is_inside_it(body: bytes) -> None:
    found = unreadable(0x32, body)
    if found is not None:
        assert body.endswith(found.payload)


@given(st.binary(min_size=1, max_size=200))
def test_no_bytes_whatever_raise_anything_else(junk: bytes) -> None:
    reader = PacketReader(1_000)
    feed(reader, junk)
    assert reader.malformed is not None or len(reader.free()) > 0


@pytest.mark.parametrize(
    ("begun", "size"),
    [(b"\x30", None), (b"\x30\x00", 2), (b"\x30\x80", None), (b"\x30\x80\x01", 131)],
)
def test_the_size_of_a_packet_is_in_its_fixed_header(begun: bytes, size: int | None) -> None:
    assert packet_size(memoryview(begun)) == size


def test_a_reader_that_is_released_holds_nothing() -> None:
    reader = PacketReader(1_000_000)
    before = len(reader.free())
    reader.release()
    assert before > 0
    assert len(reader.free()) == 0
    assert reader.filled(0) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the codec's
def test_after_the_first_text_that_is_not_utf8_the_codec_is_not_asked_again(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It panics: a quarter of a millisecond, and half a kilobyte of log, for each of thousands."""
    good = mqtt5.PublishPacket(
        "iov/v1/V1/nev", b"x", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7,
        content_type="t", response_topic="r", correlation_data=b"\xff\xfe",
        message_expiry_interval=9,
        user_properties=[("k", "v"), ("content-encoding", "zstd")],
    ).write()  # fmt: skip
    bad = good.replace(b"content-encoding", b"content-encodin\xff")
    reader = PacketReader(100_000)
    stream = (good + bad) * 200
    found = []
    for at in range(0, len(stream), 10_001):
        piece = stream[at : at + 10_001]
        reader.free()[: len(piece)] = piece
        found += reader.filled(len(piece))
    assert [type(packet) is Unreadable for packet in found] == [False, True] * 200
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert capfd.readouterr().err.count("panicked") <= 1
