"""The wire format's primitives against Python's own arithmetic and codecs."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegauge.wire import protobuf
from tidegauge.wire.protobuf import BAD_TAG, OVERLONG, TOO_DEEP, TRUNCATED, UNBALANCED, view


def encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_varint_reads_what_was_written_and_stops_behind_it(value: int, rest: bytes) -> None:
    raw = encoded(value)
    assert protobuf.varint(view(raw + rest), 0, len(raw + rest)) == (value, len(raw))
    for end in range(len(raw)):
        assert protobuf.varint(view(raw), 0, end)[1] == TRUNCATED


def test_varint_of_more_than_ten_bytes_is_refused_and_extra_bits_are_dropped() -> None:
    assert protobuf.varint(view(b"\x80" * 10 + b"\x01"), 0, 11)[1] == OVERLONG
    assert protobuf.varint(view(b"\xff" * 9 + b"\x7f"), 0, 10) == (2**64 - 1, 10)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (encoded(2**32 - 1), (2**32 - 1, 5)),
        (b"\x81\x80\x80\x80\x00", (1, 5)),
        (b"\x81\x80\x80\x80\x80\x00", (0, OVERLONG)),
        (encoded(2**32), (0, OVERLONG)),
    ],
)
def test_tags_and_lengths_have_32_bits_in_five_bytes(raw: bytes, expected: tuple[int, int]) -> None:
    assert protobuf.varint32(view(raw), 0, len(raw)) == expected


@pytest.mark.parametrize(
    ("raw", "after"),
    [
        (b"\x08\x05", 2),
        (b"\x09" + bytes(8), 9),
        (b"\x0d" + bytes(4), 5),
        (b"\x0a\x03abc", 5),
        (b"\x0b\x08\x01\x0c", 4),  # a group, with a field in it
        (b"\x0b\x13\x14\x0c", 4),  # a group in a group
        (b"\x09" + bytes(7), TRUNCATED),
        (b"\x0d" + bytes(3), TRUNCATED),
        (b"\x0a\x04abc", TRUNCATED),
        (b"\x0a" + encoded(2**32 - 1), TRUNCATED),
        (b"\x0a", TRUNCATED),
        (b"\x0b\x08\x01", TRUNCATED),
        (b"\x00\x01", BAD_TAG),
        (b"\x0e", BAD_TAG),
        (b"\x0f", BAD_TAG),
        (b"\x0c", UNBALANCED),
        (b"\x0b\x14", UNBALANCED),
    ],
)
def test_field_steps_over_each_wire_type_or_says_what_is_wrong(raw: bytes, after: int) -> None:
    assert protobuf.field(view(raw), 0, len(raw), 0)[3] == after


@pytest.mark.parametrize("level", [0, 3, 99, 100])
def test_groups_nest_as_deep_as_protobuf_allows(level: int) -> None:
    allowed = protobuf.MAX_DEPTH - level
    for depth, outcome in [(allowed, 2 * allowed), (allowed + 1, TOO_DEEP)]:
        raw = b"\x0b" * depth + b"\x0c" * depth
        if depth:
            assert protobuf.field(view(raw), 0, len(raw), level)[3] == outcome


def test_a_message_of_two_gibibytes_is_refused() -> None:
    class Large(bytes):
        def __len__(self) -> int:
            return 2**31

    with pytest.raises(ValueError, match="beyond protobuf's 2 GiB"):
        view(Large())


# Each of them at an edge of what RFC 3629 allows.
utf8_edges = (
    "61 00 7f 80 bf c180 c280 dfbf e09fbf e0a080 ed9fbf eda080 efbfbf "
    "f08fbfbf f0908080 f48fbfbf f4908080 f5808080 e282"
)
utf8_like = st.lists(st.sampled_from([bytes.fromhex(edge) for edge in utf8_edges.split()]), max_size=4).map(
    b"".join
)


@given(st.one_of(utf8_like, st.binary(max_size=8), st.text().map(str.encode)))
@example(b"\xe2\x82")
def test_utf8_is_what_python_decodes(raw: bytes) -> None:
    try:
        raw.decode()
        expected = True
    except UnicodeDecodeError:
        expected = False
    assert protobuf.is_utf8(view(raw), 0, len(raw)) is expected
