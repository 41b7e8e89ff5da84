"""A model server as one finds them: FastAPI around a scikit-learn model.

It knows nothing of tracing: `opentelemetry-instrument uvicorn server:app` adds that from outside.
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
from records import RecordSender

logging.basicConfig(level=logging.INFO)

Row = dict[str, float]

model = Model()
records = RecordSender(os.environ.get("RECORDS_LOCATION", "grpc://127.0.0.1:4317"), NAME, VERSION, FEATURES)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
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
    try:
        features = np.array([[row[feature] for feature in FEATURES] for row in rows])
    except KeyError as missing:
        raise HTTPException(422, f"a row lacks {missing}") from missing
    predictions, scores = model.predict(features)
    records.offer(features, predictions, scores)
    return [
        {"prediction": prediction, "score": float(score)}
        for prediction, score in zip(predictions, scores, strict=True)
    ]
