"""Breaks requests down into stages: joins held spans into trees, and sums what their spans tell.

A request is a tree of spans of one trace below a span that starts one: a root, or one of kind server or
consumer, unless its parent is such a span too (Triton's spans are all of kind server). The tree ends where
another request starts; the span that waits for that one keeps the time.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from tidegauge.processors.held import DISCARDED, HELD_T, LABELS_T, Outcome
from tidegauge.stats.keyed import ENTRIES_T, find, insert
from tidegauge.wire.attributes import mix

NODE = np.dtype(
    [
        ("children_end_ns", np.uint64),  # the end of the children so far, in the order of their starts
        ("children_ns", np.uint64),  # the time that they cover within the span
        ("cause_end_ns", np.uint64),  # of a request's first span: the end of `cause`
        ("parent", np.int32),  # a place among the held spans, or one of the codes below
        ("request", np.int32),  # the span that starts its request
        ("identity", np.int32),  # of a request's first span: the one that a span below it names
        ("cause", np.int32),  # of a request's first span: the span that failed first, and none below it
        ("outcome", np.uint8),
        ("is_cold", np.bool_),  # of a request's first span: a span of it is
        ("fails_below", np.bool_),
    ],
    align=True,
)
"""A held span's place in its tree, and what resolving leaves on it."""

NODES_T = numba.from_dtype(NODE)[::1]

SERIES = np.dtype(
    [
        ("family", np.int32),
        ("identity", np.int32),
        ("operation", np.int32),
        ("name", np.int32),
        ("value", np.float64),
    ],
    align=True,
)
"""A series of one of the four families, and its value. Those of the first four are the overflow's."""

TIME, REQUESTS, COLD, ERRORS = 0, 1, 2, 3
"""The families: seconds by stage, requests, cold requests, failed requests by cause."""

_NONE, _UNKNOWN, _ON_PATH, _SEVERAL = -1, -2, -3, -2
_SERVER, _CONSUMER = 2, 5
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
_KERNEL = {"cache": True, "nogil": True, "_nrt": False}
_PLACES_T = types.int32[::1]


@njit(types.int64(HELD_T, _PLACES_T, types.uint64, types.uint64), **_KERNEL)
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


@njit(types.boolean(types.int32), **_KERNEL)
def _serves(kind):  # type: ignore[no-untyped-def]
    return kind in (_SERVER, _CONSUMER)


@njit(types.int64(HELD_T, types.int64, _PLACES_T, NODES_T, types.int64), **_KERNEL)
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


@njit(types.void(HELD_T, types.int64, _PLACES_T, NODES_T, _LIMITS_T), **_KERNEL)
def _adopt(held, count, table, nodes, limits):  # type: ignore[no-untyped-def]
    """Find each span's parent, and which spans start a request."""
    for place in range(count):
        row, node = held[place], nodes[place]
        node.parent = _NONE
        node.request = _UNKNOWN
        if row.parent_id != 0:
            node.parent = table[_slot(held, table, row.trace, row.parent_id)]
        if row.is_root or (_serves(row.kind) and not (node.parent >= 0 and _serves(held[node.parent].kind))):
            node.request = place
        elif node.parent < 0 and row.has_model and row.arrived_ns + limits.give_up_ns <= limits.now_ns:
            # A call of a model whose caller is traced elsewhere.
            node.request = place
        elif node.parent < 0:
            node.request = _NONE


@njit(types.void(types.int64, NODES_T), **_KERNEL)
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


@njit(types.int64(HELD_T, _PLACES_T, types.int64, types.int64, _LIMITS_T), **_KERNEL)
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


@njit(
    types.int64(
        HELD_T,
        types.int64,
        _PLACES_T,
        NODES_T,
        _LIMITS_T,
        types.int64[::1],
        types.int32[::1],
        types.uint64[::1],
    ),
    **_KERNEL,
)
def link(held, count, table, nodes, limits, tally, members, starts):  # type: ignore[no-untyped-def]
    """Join the held spans into requests and decide what becomes of each: how many are to be resolved.

    Their places and starts are put into `members` and `starts`. A span leaves when its request has
    lingered, or when it has none for `give_up_ns`: it is counted in `tally` by its Outcome and marked as
    discarded. `table` has a power of two of elements, above the count.
    """
    tombstones = _enter(held, count, table, nodes, limits.now_ns)
    _adopt(held, count, table, nodes, limits)
    _join(count, nodes)
    for place in range(count):
        if nodes[place].request == place and nodes[place].outcome == _WAITING:
            nodes[place].outcome = _verdict(held, table, place, tombstones, limits)
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
            node.children_end_ns = row.start_ns
            node.children_ns = 0
            node.identity = node.cause = _NONE
            node.is_cold = node.fails_below = False
            members[chosen] = place
            starts[chosen] = row.start_ns
            chosen += 1
    return chosen


@njit(types.uint64(HELD_T, types.int64), **_KERNEL)
def _end_ns(held, place):  # type: ignore[no-untyped-def]
    return held[place].start_ns + np.uint64(held[place].duration_ns)


@njit(types.void(HELD_T, NODES_T, types.int64), **_KERNEL)
def _cover(held, nodes, place):  # type: ignore[no-untyped-def]
    """Add a span to the time that its parent's children cover. Call in the order of starts."""
    parent = nodes[place].parent
    within = nodes[parent]
    begin = max(held[place].start_ns, within.children_end_ns)
    end = min(_end_ns(held, place), _end_ns(held, parent))
    if end > begin:
        within.children_ns += end - begin
        within.children_end_ns = end


@njit(types.void(HELD_T, NODES_T, LABELS_T, types.int64), **_KERNEL)
def _tell(held, nodes, labels, place):  # type: ignore[no-untyped-def]
    """Note on the request what a span of it says: a model, a cold start, a failure below its ancestors."""
    row, node = held[place], nodes[place]
    request = nodes[node.request]
    request.is_cold = request.is_cold or row.is_cold
    if row.has_model and request.identity != _SEVERAL:
        identity = labels[row.label].identity
        only = request.identity == _NONE or request.identity == identity  # noqa: PLR1714 - two types
        request.identity = identity if only else _SEVERAL
    at = place
    while row.failed and at != node.request:
        at = nodes[at].parent
        if nodes[at].fails_below:
            break
        nodes[at].fails_below = True


@njit(types.void(HELD_T, NODES_T, types.int64), **_KERNEL)
def _blame(held, nodes, place):  # type: ignore[no-untyped-def]
    """Make a span that failed, and none below it, its request's cause, if it ended first."""
    if not held[place].failed or nodes[place].fails_below:
        return
    request = nodes[nodes[place].request]
    end_ns = _end_ns(held, place)
    if (
        request.cause < 0
        or end_ns < request.cause_end_ns
        or (end_ns == request.cause_end_ns and held[place].span_id < held[request.cause].span_id)
    ):
        request.cause = place
        request.cause_end_ns = end_ns


@njit(
    types.void(
        ENTRIES_T,
        numba.from_dtype(SERIES)[::1],
        types.int64[::1],
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.float64,
    ),
    **_KERNEL,
)
def _add(table, series, used, family, identity, operation, name, value):  # type: ignore[no-untyped-def]
    """Add to a series, a new one while there is room, else the family's overflow."""
    known = identity > 0 and operation > 0 and (name > 0 or family in (REQUESTS, COLD))
    place = family
    if known:
        low = np.uint64(name) << np.uint64(2) | np.uint64(family)
        key = mix(mix(np.uint64(identity) << np.uint64(32) | np.uint64(operation)) ^ low)
        found = table[find(table, key)].series
        if found >= 0:
            place = found
        elif used[0] < series.size:
            place = used[0]
            used[0] += 1
            insert(table, key, place)
            one = series[place]
            one.family = family
            one.identity = identity
            one.operation = operation
            one.name = name
    series[place].value += value


@njit(
    types.void(
        HELD_T,
        NODES_T,
        LABELS_T,
        types.int32[::1],
        ENTRIES_T,
        numba.from_dtype(SERIES)[::1],
        types.int64[::1],
    ),
    **_KERNEL,
)
def resolve(held, nodes, labels, members, table, series, used):  # type: ignore[no-untyped-def]
    """Break whole requests down: `members` are the places of all their spans, in the order of starts.

    A span's own time is its duration less the union of its children's, cut to it. Sums go to `series`, of
    which used[0] are in use; `table` finds them.
    """
    for place in members:
        if nodes[place].request != place:
            _cover(held, nodes, place)
        _tell(held, nodes, labels, place)
    for place in members:
        _blame(held, nodes, place)
    for place in members:
        row, node = held[place], nodes[place]
        first, request = held[node.request], nodes[node.request]
        identity = labels[first.label].identity
        if not first.has_model and request.identity >= 0:
            identity = request.identity
        operation = labels[first.label].name
        own_s = np.float64(np.uint64(row.duration_ns) - node.children_ns) / 1e9
        _add(table, series, used, TIME, identity, operation, labels[row.label].name, own_s)
        if node.request != place:
            continue
        _add(table, series, used, REQUESTS, identity, operation, 0, 1.0)
        if node.is_cold:
            _add(table, series, used, COLD, identity, operation, 0, 1.0)
        if row.failed:
            cause = labels[held[node.cause].label].name
            _add(table, series, used, ERRORS, identity, operation, cause, 1.0)
