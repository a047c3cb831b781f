"""A network that studies train: three layers without biases on scikit-learn's digits.

Arrays may have leading axes, for networks of several seeds at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
INPUTS, CLASSES = 64, 10


def shapes(n: int) -> tuple[tuple[int, int], ...]:
    """Fan-out and fan-in of the three layers."""
    return (n, INPUTS), (n, n), (CLASSES, n)


def digits() -> tuple[Array, Array]:
    """Scikit-learn's digits: 1797 images of 64 pixels with a root mean square of 1, and classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.data - 8) / 8
    return x / np.sqrt(np.mean(x**2)), found.target


def forward(ws: Sequence[Array], x: Array) -> list[Array]:
    """Features of every layer before its nonlinearity, sqrt(2) relu; the last are the scores."""
    found = [x @ np.swapaxes(ws[0], -1, -2)]
    for w in ws[1:]:
        found.append(math.sqrt(2) * np.maximum(found[-1], 0) @ np.swapaxes(w, -1, -2))
    return found


def losses(scores: Array, y: Array) -> tuple[Array, Array]:
    """Mean cross entropy over the last axis but one, and its gradient."""
    scores = scores - scores.max(axis=-1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    hot = np.eye(CLASSES)[y]
    count = scores.shape[-2]
    return -np.sum(hot * logs, axis=(-2, -1)) / count, (np.exp(logs) - hot) / count


def gradients(ws: Sequence[Array], x: Array, y: Array) -> list[Array]:
    """Of the mean cross entropy with respect to every layer."""
    features = forward(ws, x)
    _, error = losses(features[-1], y)
    found = []
    for layer in (2, 1):
        before = features[layer - 1]
        active = math.sqrt(2) * np.maximum(before, 0)
        found.append(np.swapaxes(error, -1, -2) @ active)
        error = (error @ ws[layer]) * math.sqrt(2) * (before > 0)
    return [np.swapaxes(error, -1, -2) @ x, *found[::-1]]
