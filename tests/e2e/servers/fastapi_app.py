"""A FastAPI model server as OpenTelemetry's documentation instruments it: `python fastapi_app.py PORT`.

OTEL_* variables say the rest, OTEL_SEMCONV_STABILITY_OPT_IN among them.
"""

import sys

import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)

app = FastAPI()


@app.post("/predict")
async def predict(features: list[float]) -> dict[str, float]:
    if not features:
        raise RuntimeError("nothing to predict from")
    return {"score": sum(features)}


FastAPIInstrumentor.instrument_app(app)
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
provider.shutdown()
