"""What each bin contributes to a distance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tidegauge.stats.distances import SMOOTHING


def psi_parts(reference: npt.NDArray[np.float64], window: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The terms (q - p) ln(q / p) of `distances.psi`, none below 0: float64[bins] of counts on the same bins.

    They add up to it. Bins that are empty on both sides have 0.
    """
    used = (reference + window) > 0
    p = (reference + SMOOTHING) / (reference.sum() + SMOOTHING * used.sum())
    q = (window + SMOOTHING) / (window.sum() + SMOOTHING * used.sum())
    return np.asarray(np.where(used, (q - p) * np.log(q / p), 0.0))
