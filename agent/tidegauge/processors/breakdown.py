"""Breaks requests down into stages: sums what the spans of each tree tell."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from tidegauge.processors.held import HELD_T, LABELS_T
from tidegauge.processors.trees import NODES_T
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.keyed import ENTRIES_T, insert, mix, slot_of

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

_NONE = -1
_FEW = 24
_SERIES_T = numba.from_dtype(SERIES)[::1]
_PLACES_T = types.int32[::1]


@kernel(types.void(HELD_T, _PLACES_T, types.int64, types.int64), **KERNEL)
def _sink(held, members, root, size):  # type: ignore[no-untyped-def]
    """Restore the heap below `root`: the latest start first."""
    moving = members[root]
    start_ns = held[moving].start_ns
    while 2 * root + 1 < size:
        child = 2 * root + 1
        if child + 1 < size and held[members[child + 1]].start_ns > held[members[child]].start_ns:
            child += 1
        if held[members[child]].start_ns <= start_ns:
            break
        members[root] = members[child]
        root = child
    members[root] = moving


@kernel(types.void(HELD_T, _PLACES_T), **KERNEL)
def _sort(held, members):  # type: ignore[no-untyped-def]
    """Sort by start: by insertion, which is quick for a few, or as a heap."""
    if members.size > _FEW:
        for root in range(members.size // 2 - 1, -1, -1):
            _sink(held, members, root, members.size)
        for last in range(members.size - 1, 0, -1):
            members[0], members[last] = members[last], members[0]
            _sink(held, members, 0, last)
        return
    for place in range(1, members.size):
        moving, gap = members[place], place
        start_ns = held[moving].start_ns
        while gap > 0 and held[members[gap - 1]].start_ns > start_ns:
            members[gap] = members[gap - 1]
            gap -= 1
        members[gap] = moving


@kernel(types.uint64(HELD_T, types.int64), **KERNEL)
def _end_ns(held, place):  # type: ignore[no-untyped-def]
    return held[place].start_ns + np.uint64(held[place].duration_ns)


@kernel(types.void(HELD_T, NODES_T, types.int64), **KERNEL)
def _cover(held, nodes, place):  # type: ignore[no-untyped-def]
    """Add a span to the time that its parent's children cover. Call in the order of starts."""
    parent = nodes[place].parent
    within = nodes[parent]
    begin = max(held[place].start_ns, within.children_end_ns)
    end = min(_end_ns(held, place), _end_ns(held, parent))
    if end > begin:
        within.children_ns += end - begin
        within.children_end_ns = end


@kernel(types.int64(HELD_T, NODES_T, _PLACES_T), **KERNEL)
def _cause(held, nodes, members):  # type: ignore[no-untyped-def]
    """Of the spans that failed, and none below them, the one that ended first."""
    for place in members:
        at = place
        while held[place].failed and at != nodes[place].request:
            at = nodes[at].parent
            if nodes[at].fails_below:
                break
            nodes[at].fails_below = True
    cause = members[0]
    found = False
    for place in members:
        if held[place].failed and not nodes[place].fails_below:
            end_ns, first_ns = _end_ns(held, place), _end_ns(held, cause)
            same = end_ns == first_ns and held[place].span_id < held[cause].span_id
            if not found or end_ns < first_ns or same:
                cause = place
                found = True
    return cause


@kernel(types.int64(HELD_T, LABELS_T, types.int64, _PLACES_T), **KERNEL)
def _owner(held, labels, first, members):  # type: ignore[no-untyped-def]
    """The identity of a request: its first span's, or the only one that spans below name."""
    named = _NONE
    for place in members:
        if held[place].has_model and not held[first].has_model:
            identity = labels[held[place].label].identity
            if named >= 0 and named != identity:
                return labels[held[first].label].identity
            named = identity
    return named if named >= 0 else labels[held[first].label].identity


@kernel(
    types.void(
        ENTRIES_T,
        _SERIES_T,
        types.int64[::1],
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.float64,
    ),
    **KERNEL,
)
def _add(table, series, used, family, identity, operation, name, value):  # type: ignore[no-untyped-def]
    """Add to a series, a new one while there is room, else the family's overflow."""
    place = family
    if identity > 0 and operation > 0 and (name > 0 or family in (REQUESTS, COLD)):
        low = np.uint64(name) << np.uint64(2) | np.uint64(family)
        key = mix(mix(np.uint64(identity) << np.uint64(32) | np.uint64(operation)) ^ low)
        found = table[slot_of(table, key)].series
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


@kernel(
    types.void(HELD_T, NODES_T, LABELS_T, _PLACES_T, ENTRIES_T, _SERIES_T, types.int64[::1]),
    **KERNEL,
)
def _resolve_one(held, nodes, labels, members, table, series, used):  # type: ignore[no-untyped-def]
    first = nodes[members[0]].request
    operation = labels[held[first].label].name
    identity = _owner(held, labels, first, members)
    _sort(held, members)
    is_cold = False
    for place in members:
        is_cold = is_cold or held[place].is_cold
        if place != first:
            _cover(held, nodes, place)
    for place in members:
        own_s = np.float64(np.uint64(held[place].duration_ns) - nodes[place].children_ns) / 1e9
        _add(table, series, used, TIME, identity, operation, labels[held[place].label].name, own_s)
    _add(table, series, used, REQUESTS, identity, operation, 0, 1.0)
    if is_cold:
        _add(table, series, used, COLD, identity, operation, 0, 1.0)
    if held[first].failed:
        cause = labels[held[_cause(held, nodes, members)].label].name
        _add(table, series, used, ERRORS, identity, operation, cause, 1.0)


@kernel(
    types.void(HELD_T, NODES_T, LABELS_T, _PLACES_T, ENTRIES_T, _SERIES_T, types.int64[::1]),
    **KERNEL,
)
def resolve(held, nodes, labels, members, table, series, used):  # type: ignore[no-untyped-def]
    """Break whole requests down: `members` are the places of all their spans, request by request.

    A span's own time is its duration less the union of its children's, cut to it; one that waits for another
    request keeps that time. Sums go to `series`, of
    which used[0] are in use; `table` finds them.
    """
    begin = 0
    for place in range(1, members.size + 1):
        if place == members.size or nodes[members[place]].request != nodes[members[begin]].request:
            _resolve_one(held, nodes, labels, members[begin:place], table, series, used)
            begin = place
