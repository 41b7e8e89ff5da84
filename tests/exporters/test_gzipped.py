"""Pages compressed piece by piece, read by ordinary readers."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import zlib
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.exporters import gzipped
from tidegauge.exporters.gzipped import Gzip, Piece, joined, packed

PIECES = st.lists(
    st.builds(
        lambda head, repeat, times: head + repeat * times,
        st.binary(max_size=50),
        st.binary(max_size=9),
        st.sampled_from([0, 1, 3000, 9000]),
    )
)


@given(st.lists(PIECES, max_size=3))
def test_any_pieces_come_back_as_one_member(pages: list[list[bytes]]) -> None:
    compressor = Gzip()
    for pieces in pages:
        body = compressor.compress(pieces)
        assert gzip.decompress(body) == b"".join(pieces)
        # Many clients read one member only, as this does.
        reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
        assert reader.decompress(body) == b"".join(pieces)
        assert reader.eof
        assert not reader.unused_data


def test_only_what_changed_is_compressed_again() -> None:
    pieces = [bytes([number]) * 40_000 for number in range(10)]
    compressor = Gzip()
    first = compressor.compress(pieces)
    with patch.object(gzipped, "_deflate", wraps=gzipped._deflate) as deflate:
        assert compressor.compress(list(pieces)) == first
        assert deflate.call_count == 0
        changed = [*pieces[:3], b"changed" * 10_000, *pieces[4:]]
        assert gzip.decompress(compressor.compress(changed)) == b"".join(changed)
        assert deflate.call_count == 1
        # What the last page did not have is forgotten.
        compressor.compress(pieces)
        assert deflate.call_count == 2


@given(PIECES)
def test_packed_parts_are_the_same_page_compressed_or_not(parts: list[bytes]) -> None:
    held = [packed(part) for part in parts]
    assert [len(one) for one in held] == [len(part) for part in parts]
    assert joined(held) == b"".join(parts)
    assert Gzip().compress(held) == Gzip().compress(parts)


def test_a_large_part_is_held_deflated_and_never_compressed_again() -> None:
    part = b"".join(b'a{k="%d"} 1.0\n' % number for number in range(1_000))
    held = packed(part)
    assert isinstance(held, Piece)
    assert len(held.fragment) < len(part) / 4
    with patch.object(gzipped, "_deflate", wraps=gzipped._deflate) as deflate:
        assert gzip.decompress(Gzip().compress([held])) == part
        assert deflate.call_count == 0
    assert packed(b"small") == b"small"


def test_small_pieces_are_compressed_together() -> None:
    pieces = [b"# TYPE a%d gauge\na%d 1.0\n" % (number, number) for number in range(500)]
    together = Gzip().compress(pieces)
    assert len(together) < 1.1 * len(gzip.compress(b"".join(pieces), 1))


@pytest.mark.skipif(shutil.which("gzip") is None, reason="gzip reads it")
def test_gzip_itself_finds_no_fault() -> None:
    body = Gzip().compress([b"x" * 100_000, b"y", b"z" * 20_000])
    done = subprocess.run(["gzip", "-dc"], input=body, capture_output=True, check=True)
    assert done.stdout == b"x" * 100_000 + b"y" + b"z" * 20_000
    assert done.stderr == b""
