"""What the protobuf library would refuse in a message, also in fields that nobody here reads.

The agent acknowledges a request and passes it on joined to others': one that the collector cannot
decode would take those with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.wire.protobuf import (
    BYTES,
    LENGTH,
    MAX_DEPTH,
    NOT_UTF8,
    TOO_DEEP,
    TRUNCATED,
    check,
    field,
    is_utf8,
    varint,
    view,
)

SCHEMA_T = types.Array(types.int16, 1, "C", readonly=True)

_FIELDS = 64
"""Numbers from here on are unknown; OTLP's are below."""

ROOT = 1
_TEXT, _VARINTS, _EIGHTS, _FOURS = -1, -2, -3, -4


class Schema:
    """The messages that can stand in `root`, a protobuf descriptor, and what to check in each of them.

    `table[64 * message + field]` is the place of the message that the field holds, or what else it
    holds: text, packed numbers, or 0 for nothing to check. The root's place is ROOT.
    """

    def __init__(self, root: Any) -> None:
        self._places: dict[str, int] = {root.full_name: ROOT}
        rows = [[0] * _FIELDS, [0] * _FIELDS]
        waiting = [root]
        for message in waiting:
            row = rows[self._places[message.full_name]]
            for one in message.fields:
                if one.message_type is not None and one.message_type.full_name not in self._places:
                    self._places[one.message_type.full_name] = len(rows)
                    rows.append([0] * _FIELDS)
                    waiting.append(one.message_type)
                row[one.number] = self._content(one)
        self.table: npt.NDArray[np.int16] = np.array(rows, np.int16).ravel()
        self.table.flags.writeable = False

    def check(self, raw: bytes) -> None:
        """Refuse what the library would.

        Raises:
            ValueError: where the bytes are no well-formed root message, with the reason.
        """
        check(_validate_root(view(raw), self.table))

    def _content(self, one: Any) -> int:
        if one.message_type is not None:
            return self._places[one.message_type.full_name]
        if one.type == one.TYPE_STRING:
            return _TEXT
        if not one.is_packed:
            return 0
        if one.type in (one.TYPE_DOUBLE, one.TYPE_FIXED64, one.TYPE_SFIXED64):
            return _EIGHTS
        return _FOURS if one.type in (one.TYPE_FLOAT, one.TYPE_FIXED32, one.TYPE_SFIXED32) else _VARINTS


@kernel(types.int64(SCHEMA_T, types.int64, types.int64), **INLINE)
def content_of(table, message, tag):  # type: ignore[no-untyped-def]
    """What the field of a message holds, as `Schema.table` has it; 0 for one that has no length."""
    if tag & 7 != LENGTH or tag >= _FIELDS << 3:
        return 0
    return np.int64(table[np.uintp(_FIELDS * message + (tag >> 3))])


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _packed(buf, pos, end, content):  # type: ignore[no-untyped-def]
    if content in (_EIGHTS, _FOURS):
        return TRUNCATED if (end - pos) % (8 if content == _EIGHTS else 4) else end
    while 0 <= pos < end:
        _, pos = varint(buf, pos, end)
    return pos


@kernel(
    types.int64(BYTES, types.int64, types.int64, types.int64, SCHEMA_T, types.int64, types.int64),
    **KERNEL,
)
def validate(buf, tag, pos, end, table, message, level):  # type: ignore[no-untyped-def]
    """Walk all that a field of a `message` at `level` holds, its payload being [pos, end).

    Returns 0, or a negative error. A field that has no length has nothing to walk.
    """
    content = content_of(table, message, tag)
    if content == _TEXT:
        return 0 if is_utf8(buf, pos, end) else NOT_UTF8
    if content < _TEXT:
        return _packed(buf, pos, end, content)
    if content > 0 and level >= MAX_DEPTH:
        return TOO_DEEP
    while content > 0 and pos < end:
        tag, _, start, pos = field(buf, pos, end, level + 1)
        if pos < 0:
            return pos
        error = validate(buf, tag, start, pos, table, content, level + 1)
        if error < 0:
            return error
    return 0


@kernel(types.int64(BYTES, SCHEMA_T), **KERNEL)
def _validate_root(buf, table):  # type: ignore[no-untyped-def]
    pos, end = 0, np.int64(buf.size)
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 0)
        if pos < 0:
            return pos
        error = validate(buf, tag, start, pos, table, ROOT, 0)
        if error < 0:
            return error
    return 0
