"""Spans as vLLM makes them: `python vllm_spans.py REQUESTS`.

vLLM needs CUDA. Its span is made after the fact, one per finished request, as in
vllm/v1/engine/output_processor.py; its newer releases trace their own start besides.
"""

import sys
import time

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True)))
tracer = provider.get_tracer("vllm.llm_engine")

with tracer.start_as_current_span("Load model", attributes={"code.function.name": "load_model"}):
    time.sleep(0.01)

for number in range(int(sys.argv[1])):
    arrival_s = time.time() - 1.5
    span = tracer.start_span(
        "llm_request",
        kind=SpanKind.SERVER,
        start_time=int(arrival_s * 1e9),
        attributes={
            "gen_ai.latency.time_to_first_token": 0.25,
            "gen_ai.latency.e2e": 1.5,
            "gen_ai.latency.time_in_queue": 0.01,
            "gen_ai.usage.prompt_tokens": 100,
            "gen_ai.usage.completion_tokens": 51,
            "gen_ai.latency.time_in_model_prefill": 0.24,
            "gen_ai.latency.time_in_model_decode": 1.25,
            "gen_ai.latency.time_in_model_inference": 1.49,
            "gen_ai.request.id": f"cmpl-{number}",
            "gen_ai.request.top_p": 0.9,
            "gen_ai.request.max_tokens": 64,
            "gen_ai.request.n": 1,
        },
    )
    span.end(int((arrival_s + 1.5) * 1e9))
provider.shutdown()
