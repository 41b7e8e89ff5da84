"""Joins held spans into requests.

A request is a tree of spans of one trace below a span that starts one: a root, or one of kind server or
consumer, unless its parent is such a span too (Triton's spans are all of kind server). The tree ends where
another request starts.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from tidegauge.processors.held import DISCARDED, HELD_T, Outcome
from tidegauge.processors.requests import serves
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.keyed import mix

NODE = np.dtype(
    [
        ("children_end_ns", np.uint64),  # the end of the children so far, in the order of their starts
        ("children_ns", np.uint64),  # the time that they cover within the span
        ("parent", np.int32),  # a place among the held spans, or one of the codes below
        ("request", np.int32),  # the span that starts its request
        ("size", np.int32),  # of a request's first span: how many it has, then where the next one goes
        ("outcome", np.uint8),
        ("fails_below", np.bool_),
    ],
    align=True,
)
"""A held span's place in its tree, and what resolving leaves on it."""

NODES_T = numba.from_dtype(NODE)[::1]

_NONE, _UNKNOWN, _ON_PATH = -1, -2, -3
_WAITING, _ANALYSED = int(Outcome.WAITING), int(Outcome.ANALYSED)
_SAMPLED, _DUPLICATE, _ORPHANED = int(Outcome.SAMPLED), int(Outcome.DUPLICATE), int(Outcome.ORPHANED)
_TOO_LARGE, _TOO_LONG = int(Outcome.TOO_LARGE), int(Outcome.TOO_LONG)

LIMITS = np.dtype(
    [
        ("now_ns", np.int64),
        ("linger_ns", np.int64),
        ("give_up_ns", np.int64),
        ("max_duration_ns", np.int64),
        ("settled", np.uint64),  # traces whose hash is above it were left out
        ("opened_ns", np.uint64),  # until then
    ],
    align=True,
)
"""What decides when a request is resolved."""

_LIMITS_T = numba.from_dtype(LIMITS)
_PLACES_T = types.int32[::1]


@kernel(types.int64(HELD_T, _PLACES_T, types.uint64, types.uint64), **KERNEL)
def _slot(held, table, trace, span_id):  # type: ignore[no-untyped-def]
    """The slot of a span, or the free one where it belongs."""
    mask = np.uint64(table.size - 1)
    slot = mix(trace ^ span_id) & mask
    while table[np.uintp(slot)] >= 0:
        row = held[np.uintp(table[np.uintp(slot)])]
        if row.trace == trace and row.span_id == span_id:
            break
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@kernel(types.int64(HELD_T, types.int64, _PLACES_T, NODES_T, types.int64), **KERNEL)
def _enter(held, count, table, nodes, now_ns):  # type: ignore[no-untyped-def]
    """Put the spans into the table, duplicates apart, and stamp those that are new. Tombstones among them."""
    table[:] = -1
    tombstones = 0
    for place in range(count):
        row, node = held[place], nodes[place]
        if row.arrived_ns == 0:
            row.arrived_ns = now_ns
        slot = _slot(held, table, row.trace, row.span_id)
        node.outcome = _WAITING
        if table[slot] >= 0:
            node.outcome = _DUPLICATE
            if row.span_id == 0:  # the younger tombstone stands longer
                held[table[slot]].arrived_ns = row.arrived_ns
        else:
            table[slot] = place
            tombstones += row.span_id == 0
    return tombstones


@kernel(types.void(HELD_T, types.int64, _PLACES_T, NODES_T, _LIMITS_T), **KERNEL)
def _adopt(held, count, table, nodes, limits):  # type: ignore[no-untyped-def]
    """Find each span's parent, and which spans start a request."""
    for place in range(count):
        row, node = held[place], nodes[place]
        node.parent = _NONE
        node.request = _UNKNOWN
        if row.parent_id != 0:
            node.parent = table[_slot(held, table, row.trace, row.parent_id)]
        if row.is_root or (serves(row.kind) and not (node.parent >= 0 and serves(held[node.parent].kind))):
            node.request = place
        elif node.parent < 0 and row.has_model and row.arrived_ns + limits.give_up_ns <= limits.now_ns:
            # A call of a model whose caller is traced elsewhere.
            node.request = place
        elif node.parent < 0:
            node.request = _NONE


@kernel(types.void(types.int64, NODES_T), **KERNEL)
def _join(count, nodes):  # type: ignore[no-untyped-def]
    """Give every span the request of its nearest ancestor that starts one; none on a circle of parents."""
    for place in range(count):
        at = place
        while nodes[at].request == _UNKNOWN:
            nodes[at].request = _ON_PATH
            at = nodes[at].parent
        request = nodes[at].request if nodes[at].request != _ON_PATH else _NONE
        at = place
        while nodes[at].request == _ON_PATH:
            nodes[at].request = request
            at = nodes[at].parent


@kernel(types.int64(HELD_T, _PLACES_T, types.int64, types.int64, _LIMITS_T), **KERNEL)
def _verdict(held, table, place, tombstones, limits):  # type: ignore[no-untyped-def]
    """What becomes of the request that the span at `place` starts."""
    row = held[place]
    if row.arrived_ns + limits.linger_ns > limits.now_ns:
        return _WAITING
    if tombstones and table[_slot(held, table, row.trace, np.uint64(0))] >= 0:
        return _TOO_LARGE
    if row.duration_ns > limits.max_duration_ns:
        return _TOO_LONG
    if row.trace > limits.settled and row.start_ns < limits.opened_ns:
        return _SAMPLED
    return _ANALYSED


@kernel(types.int64(HELD_T, types.int64, NODES_T, _LIMITS_T, types.int64[::1]), **KERNEL)
def _part(held, count, nodes, limits, tally):  # type: ignore[no-untyped-def]
    """Mark the spans that leave, and count those to be resolved."""
    chosen = 0
    for place in range(count):
        row, node = held[place], nodes[place]
        if node.outcome != _DUPLICATE:
            if node.request >= 0:
                node.outcome = nodes[node.request].outcome
            elif row.arrived_ns + limits.give_up_ns <= limits.now_ns:
                node.outcome = _ORPHANED
        if node.outcome == _WAITING:
            continue
        tally[node.outcome] += row.span_id != 0
        row.arrived_ns = DISCARDED
        if node.outcome == _ANALYSED:
            # One span with an end that nobody wrote must not add centuries to its operation's time.
            row.duration_ns = min(row.duration_ns, limits.max_duration_ns)
            node.children_end_ns = row.start_ns
            node.children_ns = 0
            node.fails_below = False
            nodes[node.request].size += 1
            chosen += 1
    return chosen


@kernel(
    types.int64(HELD_T, types.int64, _PLACES_T, NODES_T, _LIMITS_T, types.int64[::1], _PLACES_T), **KERNEL
)
def link(held, count, table, nodes, limits, tally, members):  # type: ignore[no-untyped-def]
    """Join the held spans into requests and decide what becomes of each: how many are to be resolved.

    Their places are put into `members`, request by request. A span leaves when its request has lingered,
    or when it has none for `give_up_ns`: it is counted in `tally` by its Outcome and marked as discarded.
    `table` has a power of two of elements, above the count.
    """
    tombstones = _enter(held, count, table, nodes, limits.now_ns)
    _adopt(held, count, table, nodes, limits)
    _join(count, nodes)
    for place in range(count):
        node = nodes[place]
        node.size = 0
        if node.request == place and node.outcome == _WAITING:
            node.outcome = _verdict(held, table, place, tombstones, limits)
    chosen = _part(held, count, nodes, limits, tally)
    begin = 0
    for place in range(count):
        node = nodes[place]
        if node.request == place and node.outcome == _ANALYSED:
            node.size, begin = begin, begin + node.size
    for place in range(count):
        if nodes[place].outcome == _ANALYSED:
            request = nodes[nodes[place].request]
            members[request.size] = place
            request.size += 1
    return chosen
