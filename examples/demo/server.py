"""A model server as one finds them: FastAPI around a scikit-learn model.

Its requests, its log and the libraries' metrics are exported from outside, by `opentelemetry-instrument
uvicorn server:app`. Of itself it names two parts of a request, and counts what the business asks about:
with OpenTelemetry's API, which does nothing where nobody listens.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException
from model import FEATURES, NAME, VERSION, Model
from opentelemetry import metrics, trace
from records import RecordSender

logging.basicConfig(level=logging.INFO)
log = logging.getLogger("screening")
tracer = trace.get_tracer("screening")
meter = metrics.get_meter("screening")

biopsies = meter.create_counter("screening.biopsies", "{biopsy}", "Biopsies that were recommended.")
confidence = meter.create_histogram(
    "screening.confidence",
    "1",
    "How sure the model was, from 0.5 to 1.",
    explicit_bucket_boundaries_advisory=[0.6, 0.7, 0.8, 0.9, 0.95, 0.99],
)

Row = dict[str, float]
UNSURE = 0.55

model = Model()
records = RecordSender(os.environ.get("RECORDS_LOCATION", "grpc://127.0.0.1:4317"), NAME, VERSION, FEATURES)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    log.info("%s %s is ready", NAME, VERSION)
    with records:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(row: Row) -> dict[str, Any]:
    """The prediction for one row, a mapping of feature to value."""
    return answer([row])[0]


@app.post("/predict/batch")
def predict_batch(rows: list[Row]) -> list[dict[str, Any]]:
    """The predictions for several rows."""
    return answer(rows)


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


def answer(rows: list[Row]) -> list[dict[str, Any]]:
    with tracer.start_as_current_span("features"):
        try:
            features = np.array([[row[feature] for feature in FEATURES] for row in rows])
        except KeyError as missing:
            raise HTTPException(422, f"a row lacks {missing}") from missing
    with tracer.start_as_current_span("model"):
        predictions, scores = model.predict(features)
    records.offer(features, predictions, scores)
    biopsies.add(predictions.count("malignant"))
    for sure in np.maximum(scores, 1 - scores).tolist():
        confidence.record(sure)
        if sure < UNSURE:
            log.warning("unsure: %.2f", sure)
    return [
        {"prediction": prediction, "score": float(score)}
        for prediction, score in zip(predictions, scores, strict=True)
    ]
