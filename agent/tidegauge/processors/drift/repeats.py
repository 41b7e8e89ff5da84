"""Prediction ids that come again, in fixed memory."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import types

from tidegauge.layout import storage_type
from tidegauge.stats.kernel import kernel
from tidegauge.stats.keyed import mix
from tidegauge.wire.attributes import digest
from tidegauge.wire.protobuf import BYTES

_KERNEL = {"cache": True, "nogil": True, "_nrt": False}

_WAYS = 32
"""Tags in a bucket, two cache lines: their number is Poisson's, and twice its mean in a bucket is rare."""

_INTEGERS = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
"""By bits: numbers are hashed as the integers of the same bits."""


class RepeatsState(NamedTuple):
    """Ids as they were at one moment, which nobody changes any more: tags, uint32[buckets, 32], the place of
    the oldest in each bucket, uint8[buckets], and the secret that ids are hashed with."""

    tags: npt.NDArray[np.uint32]
    oldest: npt.NDArray[np.uint8]
    seed: int


class Repeats:
    """Remembers the last `ids` ids at least, and as many again at most, by a 32-bit tag of their hash.

    Each bucket of 32 tags forgets its oldest for a new one. An id that came within the last `ids` is found
    with a probability of 99.9 %; one that is new is taken for a known one with at most
    32 / 2**32 = 7.5e-9. It takes 8 bytes an id. Hashes are keyed with a secret, so that no sender can
    choose ids that meet.
    """

    def __init__(self, ids: int) -> None:
        buckets = 1 << max(2 * ids // _WAYS - 1, 0).bit_length()
        self._tags = np.zeros((buckets, _WAYS), np.uint32)
        self._oldest = np.zeros(buckets, np.uint8)
        self._seed = np.uint64(secrets.randbits(64))
        self._lent = False  # captured as they are: copied before they are changed

    def update(self, column: pa.Array[Any]) -> int:
        """Take in a column of ids; how many of them came before, in it or earlier. Nulls are no ids."""
        if self._lent:
            self._tags, self._oldest, self._lent = self._tags.copy(), self._oldest.copy(), False
        return int(_count(self._tags, self._oldest, keys(column, self._seed)))

    def capture(self) -> RepeatsState:
        """All of it, without a copy."""
        self._lent = True
        return RepeatsState(self._tags, self._oldest, int(self._seed))

    def restore(self, state: RepeatsState) -> None:
        """Go on from there.

        Raises:
            ValueError: where as many ids are not to be remembered.
        """
        tags, oldest, seed = state
        if tags.shape != self._tags.shape or (oldest >= _WAYS).any():
            raise ValueError("its prediction ids are of another number (drift.remembered_ids)")
        self._tags, self._oldest, self._seed = tags, oldest, np.uint64(seed)


def keys(column: Any, seed: np.uint64) -> npt.NDArray[np.uint64]:
    """A hash of each id that is not null: uint64[at most rows]. Equal ids of one type have equal ones."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        column = column.drop_null()
    kind = column.type
    if pa.types.is_primitive(kind) and not pa.types.is_boolean(kind):
        whole: Any = pc.cast(column.view(_INTEGERS[kind.bit_width]), pa.int64())
        return np.asarray(_numbers(whole.to_numpy().view(np.uint64), seed))
    if not _is_bytes(kind):
        column = pc.cast(column, pa.string())
    width: type[np.int32 | np.int64] = np.int64
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        width = np.int32
    elif not (pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)):
        column = pc.cast(column, pa.large_binary())
    _, offsets, octets = column.buffers()
    if not len(column):
        return np.empty(0, np.uint64)
    bounds = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1]
    octets = np.frombuffer(octets if octets is not None else b"", np.uint8)
    return np.asarray(_texts(octets, bounds.astype(np.int64), seed))


def is_hashable(kind: pa.DataType) -> bool:
    """Whether `keys` takes columns of this type."""
    kind = storage_type(kind)
    if pa.types.is_primitive(kind):
        return kind.bit_width in _INTEGERS or pa.types.is_boolean(kind)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


@kernel(
    types.uint64[::1](types.Array(types.uint64, 1, "C", readonly=True), types.uint64), cache=True, nogil=True
)
def _numbers(values, seed):  # type: ignore[no-untyped-def]
    found = np.empty(len(values), np.uint64)
    for index in range(len(values)):
        found[index] = mix(values[index] ^ seed)
    return found


@kernel(
    types.uint64[::1](BYTES, types.Array(types.int64, 1, "C", readonly=True), types.uint64),
    cache=True,
    nogil=True,
)
def _texts(octets, bounds, seed):  # type: ignore[no-untyped-def]
    found = np.empty(len(bounds) - 1, np.uint64)
    for index in range(len(found)):
        found[index] = digest(octets, bounds[index], bounds[index + 1], seed)
    return found


@kernel(types.int64(types.uint32[:, ::1], types.uint8[::1], types.uint64[::1]), **_KERNEL)
def _count(tags, oldest, hashes):  # type: ignore[no-untyped-def]
    repeats = 0
    for key in hashes:
        bucket = np.uintp(key & np.uint64(len(tags) - 1))
        # A tag of 0 is a free place.
        tag = np.uint32(max(key >> np.uint64(32), np.uint64(1)))
        known = False
        for way in range(_WAYS):
            known |= tags[bucket, way] == tag
        if known:
            repeats += 1
        else:
            tags[bucket, np.uintp(oldest[bucket])] = tag
            oldest[bucket] = (oldest[bucket] + np.uint8(1)) % np.uint8(_WAYS)
    return repeats
