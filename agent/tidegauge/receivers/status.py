"""How a call on the gRPC port is ended: the status of a verdict, with RetryInfo where it passes."""

from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tidegauge.receivers.outcome import RETRY_DELAY_S, Outcome, Verdict

_CODES = {
    Verdict.UNDECODABLE: grpc.StatusCode.INVALID_ARGUMENT,
    Verdict.QUEUE_FULL: grpc.StatusCode.UNAVAILABLE,
    Verdict.OVERLOAD: grpc.StatusCode.UNAVAILABLE,
    Verdict.SLOW: grpc.StatusCode.UNAVAILABLE,
    # Without RetryInfo, RESOURCE_EXHAUSTED tells a sender not to try again.
    Verdict.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    # Only a call that was closed without a message lives to see it; of the others nobody listens.
    Verdict.ABANDONED: grpc.StatusCode.INVALID_ARGUMENT,
}


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], outcome: Outcome) -> NoReturn:
    """End a call. Raises what gRPC's handlers end with."""
    trailers = _retry_info(outcome.message) if outcome.verdict.passing else ()
    await context.abort(_CODES[outcome.verdict], outcome.message, trailers)


def _retry_info(message: str) -> tuple[tuple[str, bytes], ...]:
    retry = RetryInfo()
    retry.retry_delay.FromSeconds(RETRY_DELAY_S)
    detail = Any()
    detail.Pack(retry)
    status = Status(code=Code.UNAVAILABLE, message=message, details=[detail])
    return (
        ("grpc-status-details-bin", status.SerializeToString()),  # what the specification asks for
        ("google.rpc.retryinfo-bin", retry.SerializeToString()),  # what OpenTelemetry's Python reads
    )
