"""OTLP over gRPC: real exporters and raw calls against the real server, pipeline and processor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tidegauge import config
from tidegauge.metric import ExponentialHistogram
from tidegauge.pipeline import Pipeline
from tidegauge.processors.latency import Latency
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.telemetry import Telemetry


def test_a_tracer_s_spans_become_latency():
    async def main():
        telemetry = Telemetry()
        pipeline = Pipeline([Latency(config.Latency())], telemetry, queue_bytes=2**20)
        otlp = OtlpReceiver(pipeline, telemetry, config.IdentityAttributes())
        settings = config.GrpcReceiver(endpoint="127.0.0.1:0")
        async with pipeline, GrpcServer(settings, otlp) as server:
            def send():
                exporter = OTLPSpanExporter(f"http://127.0.0.1:{server.port}", compression=grpc.Compression.Gzip)
                provider = TracerProvider(resource=Resource.create({"service.name": "fraud"}))
                provider.add_span_processor(BatchSpanProcessor(exporter))
                tracer = provider.get_tracer("t")
                for _ in range(100):
                    with tracer.start_as_current_span("POST /predict"):
                        pass
                provider.shutdown()
            await asyncio.to_thread(send)
            latency, _ = await pipeline.collect(0)
            print(latency, telemetry.collect())
    asyncio.run(main())
