"""Random Fourier features: a Gaussian kernel as an inner product, so that its means are sums that add up.

k(x, y) = exp(-|x - y|^2 / (2 s^2)) is the expectation of cos(w (x - y)) over w ~ N(0, I / s^2) (Rahimi &
Recht 2007). With F frequencies z(x) = (cos w_f x, sin w_f x) / sqrt(F) has |z| = 1 and z(x) z(y) = k to
within about 1 / sqrt(2 F); the squared distance of two samples' mean z is their MMD^2 (Gretton et al.
2012) for that kernel.

The frequencies are the rows of structured orthogonal matrices, sqrt(n) H D H D H D / s with H the
normalised Hadamard matrix and D random signs (Yu et al. 2016): n log n additions for n projections instead
of n^2 multiplications, no matrix to keep, and less variance than independent frequencies. Their signs are
made from a seed by integer arithmetic alone, so that they are the same wherever a reference is read.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import KERNEL, kernel

FREQUENCIES = 256
"""F: the kernel is off by 0.044 (one standard deviation) at most, an MMD^2 of it relatively less."""

LANES = 16
"""Rows that are transformed side by side: butterflies of one row vectorise badly."""

_LEAST = 64
"""Projections of less than this many dimensions would not be about normal: they are padded with zeros."""

_ROUNDS = 3
_FAR = 1e6
"""Bandwidths from the centre beyond which a component is cut: its phase is arbitrary long before."""

_LARGEST = float(np.finfo(np.float32).max)

_EXPONENT = 0x7F80_0000
"""All ones in infinities and NaNs (IEEE 754, binary32)."""

_REASSOCIATED = {"cache": True, "nogil": True, "_nrt": False, "fastmath": {"reassoc", "contract"}}


class Frequencies:
    """F random frequencies for vectors of `width` components.

    `signs` is float32[blocks, 3, n]; n is the least power of two that holds a vector.
    """

    def __init__(self, width: int, count: int = FREQUENCIES, seed: int = 0) -> None:
        self.width, self.count = width, count
        self.padded = max(_LEAST, 1 << (width - 1).bit_length())
        blocks = -(-count // self.padded)
        bits = _mixed(np.arange(blocks * _ROUNDS * self.padded, dtype=np.uint64) + np.uint64(seed << 32))
        signs = np.where(bits >> np.uint64(63), np.float32(1), np.float32(-1))
        self.signs = np.ascontiguousarray(signs.reshape(blocks, _ROUNDS, self.padded))

    def fold(
        self,
        rows: npt.NDArray[np.float32],
        center: npt.NDArray[np.float32],
        bandwidth: float,
        moments: npt.NDArray[np.float64],
        sums: npt.NDArray[np.float64],
    ) -> int:
        """Add rows to sums; returns how many, for those with a component that is not finite are left out.

        Args:
            rows: float32[rows, width], contiguous.
            center: float32[width], about which moments are taken; it makes phases small.
            bandwidth: s of the kernel.
            moments: float64[2, width], added to: sums of gaps to the centre, and of their squares.
            sums: float64[2, count], added to: sums of cosines and of sines.
        """
        scratch = np.empty(self.padded * LANES, np.float32)
        scale = np.float32(min(1.0 / (2.0 * math.pi * bandwidth * self.padded), _LARGEST))
        most = np.float32(min(_FAR * bandwidth, _LARGEST))
        return int(_fold(rows, rows.view(np.uint32), center, self.signs, scale, most, scratch, moments, sums))

    def map(
        self, rows: npt.NDArray[np.float32], center: npt.NDArray[np.float32], bandwidth: float
    ) -> npt.NDArray[np.float64]:
        """z of each row: float64[rows, 2 * count], cosines before sines."""
        found = np.empty((len(rows), 2, self.count))
        moments = np.zeros((2, self.width))
        for index in range(len(rows)):
            found[index] = 0.0
            self.fold(rows[index : index + 1], center, bandwidth, moments, found[index])
        return found.reshape(len(rows), -1) / math.sqrt(self.count)


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea & Flood 2014) of each number."""
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * np.uint64(0x9E37_79B9_7F4A_7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


@numba.njit(**KERNEL)
def _butterflies(low: Any, high: Any) -> None:
    # Slices and not indices into one array, which LLVM would not vectorise: 0.1 instead of 0.4 ns a value.
    for index in range(len(low)):
        a, b = low[index], high[index]
        low[index], high[index] = a + b, a - b


@numba.njit(**KERNEL)
def _turn_signs(lanes: Any, sign: Any) -> None:
    for lane in range(LANES):
        lanes[lane] *= sign


@numba.njit(**KERNEL)
def _transform(tile: Any, signs: Any) -> None:
    """Signs and a Walsh-Hadamard transform of each lane, in place: float32[n * LANES], float32[n]."""
    for index in range(len(signs)):
        _turn_signs(tile[index * LANES : (index + 1) * LANES], signs[index])
    half = LANES
    while half < len(tile):
        for start in range(0, len(tile), 2 * half):
            _butterflies(tile[start : start + half], tile[start + half : start + 2 * half])
        half *= 2


@numba.njit(**KERNEL)
def _load(rows: Any, center: Any, most: Any, scale: Any, lane: Any, tile: Any) -> None:
    """Put a row's scaled gaps to the centre into one lane of the tile."""
    place = np.uintp(lane)
    for index in range(len(rows)):
        tile[place] = min(max(rows[index] - center[index], -most), most) * scale
        place += np.uintp(LANES)
    while place < len(tile):
        tile[place] = np.float32(0.0)
        place += np.uintp(LANES)


# Sine and cosine of 2 pi t for |t| <= 1/4: Taylor's series, whose first term left out is below 4e-9 there.
_S1, _S3, _S5, _S7, _S9, _S11 = (
    np.float32((-1) ** k * (2 * math.pi) ** (2 * k + 1) / math.factorial(2 * k + 1)) for k in range(6)
)


@numba.njit(**_REASSOCIATED)
def _sine(turn: Any) -> Any:
    """sin(2 pi turn) to 1e-6 for any finite float32; polynomials vectorise, and libm's sine does not."""
    t = turn - np.floor(turn + np.float32(0.5))
    # Fold onto [-1/4, 1/4], where the sine is monotone: sin(pi - a) = sin(a).
    t = np.float32(0.5) - t if t > np.float32(0.25) else t
    t = np.float32(-0.5) - t if t < np.float32(-0.25) else t
    u = t * t
    return t * (_S1 + u * (_S3 + u * (_S5 + u * (_S7 + u * (_S9 + u * _S11)))))


@numba.njit(**_REASSOCIATED)
def _add_waves(turns: Any, lanes: Any, sums: Any, frequency: Any) -> None:
    cosines, sines = np.float32(0.0), np.float32(0.0)
    if lanes == LANES:
        for lane in range(LANES):  # of a known number, and so without a loop around it
            sines += _sine(turns[lane])
            cosines += _sine(turns[lane] + np.float32(0.25))
    else:
        for lane in range(lanes):
            sines += _sine(turns[lane])
            cosines += _sine(turns[lane] + np.float32(0.25))
    sums[0, frequency] += cosines
    sums[1, frequency] += sines


@numba.njit(**KERNEL)
def _add_moments(row: Any, center: Any, sums: Any, squares: Any) -> None:
    for index in range(len(row)):
        gap = np.float64(row[index]) - np.float64(center[index])
        sums[index] += gap
        squares[index] += gap * gap


@numba.njit(**KERNEL)
def _is_finite(bits: Any) -> Any:
    wrong = np.uint32(0)
    for index in range(len(bits)):
        wrong = max(wrong, bits[index] & np.uint32(_EXPONENT))
    return wrong != np.uint32(_EXPONENT)


@kernel(
    types.int64(
        types.Array(types.float32, 2, "C", readonly=True),
        types.Array(types.uint32, 2, "C", readonly=True),
        types.Array(types.float32, 1, "C", readonly=True),
        types.Array(types.float32, 3, "C", readonly=True),
        types.float32,
        types.float32,
        types.float32[::1],
        types.float64[:, ::1],
        types.float64[:, ::1],
    ),
    **KERNEL,
)
def _fold(
    rows: Any, bits: Any, center: Any, signs: Any, scale: Any, most: Any, tile: Any, moments: Any, sums: Any
) -> Any:
    size, frequencies = signs.shape[2], sums.shape[1]
    folded = 0
    at = 0
    while at < len(rows):
        # The next LANES rows that are finite: their places follow each other in most batches.
        first, lanes = at, 0
        while at < len(rows) and lanes < LANES and _is_finite(bits[at]):
            _add_moments(rows[at], center, moments[0], moments[1])
            lanes += 1
            at += 1
        if lanes < LANES:
            at += 1 if at < len(rows) and not _is_finite(bits[at]) else 0
        if lanes == 0:
            continue
        folded += lanes
        for block in range(len(signs)):
            for lane in range(LANES):
                _load(rows[first + min(lane, lanes - 1)], center, most, scale, lane, tile)
            for turned in range(3):
                _transform(tile, signs[block, turned])
            start = block * size
            for index in range(min(size, frequencies - start)):
                _add_waves(tile[index * LANES : (index + 1) * LANES], lanes, sums, start + index)
    return folded
