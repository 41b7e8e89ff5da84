"""LitServe has no tracing of its own: a Callback makes a span of each prediction. `litserve_app.py PORT`."""

import sys
from typing import Any

import litserve
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind


class Tracing(litserve.Callback):
    """Lives in the worker, which starts after a fork: the provider is made there."""

    def on_after_setup(self, *_: Any, **__: Any) -> None:
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
        self._tracer = provider.get_tracer("litserve")

    def on_before_predict(self, *_: Any, **__: Any) -> None:
        who = {"model.name": "doubler", "model.version": "3"}
        self._span = self._tracer.start_span("predict", kind=SpanKind.SERVER, attributes=who)

    def on_after_predict(self, *_: Any, **__: Any) -> None:
        self._span.end()


class Doubler(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, float]) -> float:
        return request["value"]

    def predict(self, value: float) -> float:
        return 2 * value

    def encode_response(self, output: float) -> dict[str, float]:
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(Doubler(), accelerator="cpu", callbacks=Tracing())
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
