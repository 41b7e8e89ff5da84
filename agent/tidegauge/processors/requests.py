"""Which spans are requests, so that each request is counted once whatever the model server writes."""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from tidegauge.identity import UNKNOWN_MODEL, Identity
from tidegauge.wire.protobuf import INLINE
from tidegauge.wire.traces import SCOPES_KNOWN, SPAN, identity

TRITON = SCOPES_KNOWN.index("triton-server")

_SERVER, _CONSUMER = 2, 5


@njit(types.boolean(numba.from_dtype(SPAN)), **INLINE)
def is_request(span):  # type: ignore[no-untyped-def]
    """Whether a span (of SPAN) is a request.

    It is where its kind is server or consumer, where it is a root, and where it names a model itself.
    That leaves out a framework's inner spans, such as ASGI's "http send". Triton writes three server
    spans for a request, of which the one that names the model counts: "InferRequest" and "compute" do
    not. A request to an ensemble counts once for the ensemble and once for each model in it.
    """
    if span.scope == TRITON:
        return span.has_model
    return span.has_model or span.is_root or span.kind in (_SERVER, _CONSUMER)


def owner(raw: bytes, span: np.void) -> Identity:
    """Whose request a span is, `raw` being the OTLP request that holds it; never without a model."""
    who = identity(raw, span)
    return who if who.model else who._replace(model=UNKNOWN_MODEL)
