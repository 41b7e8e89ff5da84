"""The demo's model: a classifier of the breast cancer data set that scikit-learn ships.

569 rows of 30 measurements. Fitting takes a blink and always gives the same model, so the server
and the script that writes the training data each fit their own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

NAME = "breast-cancer"
VERSION = "1"

_DATASET = load_breast_cancer()
FEATURES: tuple[str, ...] = tuple(map(str, _DATASET.feature_names))
ROWS: npt.NDArray[np.float64] = _DATASET.data


class Model:
    """Tells malignant from benign."""

    def __init__(self) -> None:
        self._classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self._classifier.fit(ROWS, _DATASET.target)

    def predict(self, rows: npt.NDArray[np.float64]) -> tuple[list[str], npt.NDArray[np.float64]]:
        """The label of each row and the probability that it is benign."""
        scores = self._classifier.predict_proba(rows)[:, 1]
        return ["benign" if score >= 0.5 else "malignant" for score in scores], scores


def training_data() -> pa.Table:
    """The rows the model was fitted on, with their labels and what the model says to them."""
    predictions, scores = Model().predict(ROWS)
    return pa.table(
        dict(zip(FEATURES, ROWS.T, strict=True))
        | {
            "label": [str(_DATASET.target_names[target]) for target in _DATASET.target],
            "prediction": predictions,
            "score": scores,
        }
    )
