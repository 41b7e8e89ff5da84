"""The smallest service of BentoML, tracing every request to where OTLP_ENDPOINT says."""

import os

import bentoml

otlp = {"protocol": "grpc", "endpoint": os.environ["OTLP_ENDPOINT"], "grpc": {"insecure": True}}


@bentoml.service(tracing={"exporter_type": "otlp", "sample_rate": 1.0, "otlp": otlp})
class Doubler:
    @bentoml.api
    def predict(self, value: float) -> float:
        return 2 * value
