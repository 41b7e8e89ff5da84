"""Which spans are requests, so that each request is counted once whatever the model server writes."""

from __future__ import annotations

import numba
from numba import types

from tidegauge.stats.kernel import INLINE, kernel
from tidegauge.wire.traces import SCOPES_KNOWN, SPAN

TRITON = SCOPES_KNOWN.index("triton-server")

_SERVER, _CLIENT, _PRODUCER, _CONSUMER = 2, 3, 4, 5


@kernel(types.boolean(types.int32), **INLINE)
def serves(kind):  # type: ignore[no-untyped-def]
    """Whether a span of that kind answers somebody."""
    return kind in (_SERVER, _CONSUMER)


@kernel(types.boolean(numba.from_dtype(SPAN)), **INLINE)
def is_request(span):  # type: ignore[no-untyped-def]
    """Whether a span (of SPAN) is a request.

    It is where its kind is server or consumer, where it names a model itself, and where it is a root, but
    for calls to elsewhere: who polls a queue or a database makes thousands without a parent. That leaves
    out a framework's inner spans, such as ASGI's "http send". Triton writes three server spans for a
    request, of which the one that names the model counts: "InferRequest" and "compute" do not. A request
    to an ensemble counts once for the ensemble and once for each model in it.
    """
    if span.scope == TRITON:
        return span.has_model
    if span.has_model or serves(span.kind):
        return True
    return span.is_root and span.kind not in (_CLIENT, _PRODUCER)
