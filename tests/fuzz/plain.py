"""The wire readers as plain Python that a fuzzer can watch, on messages that tell a read outside of them.

With NUMBA_DISABLE_JIT=1 a kernel is its own source. Three things differ from the compiled one: a
structure's fields are attributes of a numpy record only, sums of unsigned words warn where they wrap, and
what LLVM's instructions do has to be said in Python.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np

_BYTES = [np.uint8(value) for value in range(256)]


class OutOfBounds(Exception):  # noqa: N818 - no error of a request, which are ValueErrors
    """A reader has looked outside of its message."""


class Message:
    """The bytes of a message, as the array that readers take."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.size = len(raw)

    def __getitem__(self, place: Any) -> np.uint8:
        if not 0 <= place < self.size:
            raise OutOfBounds(f"byte {place} of {self.size}")
        return _BYTES[self._raw[place]]


def load(buf: Any, pos: Any) -> np.uint64:
    """The eight bytes at `pos`, first one lowest."""
    value = 0
    for place in range(8):
        value |= int(buf[int(pos) + place]) << 8 * place
    return np.uint64(value)


def swap(value: np.uint64) -> np.uint64:
    """A word with its bytes in reverse."""
    return np.uint64(int.from_bytes(int(value).to_bytes(8, "little"), "big"))


def fold(one: np.uint64, other: np.uint64) -> np.uint64:
    """The upper half of the 128-bit product of two words, xor the lower one."""
    product = int(one) * int(other)
    return np.uint64((product >> 64 ^ product) & 2**64 - 1)


def replace_instructions() -> None:
    """Put Python in place of `wire.words`. Call before the readers are imported."""
    from tidegauge.wire import words

    words.load, words.swap, words.fold = load, swap, fold


def watch_reads() -> None:
    """Let the readers take a `Message` and numpy records. Call behind their import."""
    np.seterr(all="ignore")
    records = types.ModuleType("numpy")
    records.__dict__.update(vars(np))
    records.empty = lambda shape, dtype=float: _records(np.empty(shape, dtype))  # type: ignore[attr-defined]
    records.zeros = lambda shape, dtype=float: _records(np.zeros(shape, dtype))  # type: ignore[attr-defined]
    for name, module in sys.modules.items():
        if name.startswith(("tidegauge.wire.", "oracle_")):
            for attribute, value in (("np", records), ("view", Message)):
                if hasattr(module, attribute):
                    setattr(module, attribute, value)


def _records(array: Any) -> Any:
    return array.view(np.recarray) if array.dtype.names else array


def on_records(keys: Any) -> Any:
    """Configured keys whose attributes a plain reader can take."""
    return keys._replace(attributes=_records(keys.attributes))
