"""Spectra on which iterations converge slowly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polarlib.arrays.checks import choice, count
from polarlib.zoo.matrices import LARGEST


def _logspace(low: float) -> Callable[[int], np.ndarray]:
    return lambda k: np.geomspace(1.0, low, k)


def _leading(head: np.ndarray, k: int, tail: np.ndarray | None = None) -> np.ndarray:
    s = np.zeros(k)
    head = head[:k]
    s[: head.size] = head
    if tail is not None:
        s[head.size :] = tail[: k - head.size]
    return s


def _log_uniform(low: float, k: int) -> np.ndarray:
    s = low ** np.random.default_rng(7).random(k)
    s[0] = 1.0
    return np.sort(s)[::-1]


def _elevenths(k: int) -> np.ndarray:
    rare = max(k // 11, 1)
    s = np.concatenate([np.geomspace(1, 1e-10, k - rare), np.geomspace(1e-4, 1e-10, rare)])
    return np.sort(s)[::-1]


_SPECTRA: dict[str, Callable[[int], np.ndarray]] = {
    # The stress test of gram-newton-schulz (Dao-AILab, 2025).
    "linear": lambda k: np.linspace(0.5, 0.0, k),
    "log 1e-3": _logspace(1e-3),
    "log 1e-5": _logspace(1e-5),
    "log 1e-7": _logspace(1e-7),
    "log 1e-9": _logspace(1e-9),
    "half log, half zero": lambda k: _leading(np.geomspace(1, 1e-2, (k + 1) // 2), k),
    "rank ten": lambda k: _leading(np.geomspace(1, 0.1, 10), k),
    "rank two": lambda k: _leading(np.array([1.0, 0.32]), k),
    "rank two with tail": lambda k: _leading(
        np.array([1.0, 0.32]), k, np.geomspace(1e-4, 1e-7, max(k - 2, 1))
    ),
    "ten elevenths": _elevenths,
    "gamma": lambda k: np.sort(np.random.default_rng(5).gamma(3.0, 0.5, k))[::-1],
    # Adversarial ones.
    "ones": np.ones,
    "rank one": lambda k: _leading(np.ones(1), k),
    "rank two with low tail": lambda k: _leading(
        np.array([1.0, 0.3]), k, np.geomspace(1e-4, 1e-7, max(k - 2, 1))
    ),
    "log-uniform 1e-3": lambda k: _log_uniform(1e-3, k),
    "log-uniform 1e-7": lambda k: _log_uniform(1e-7, k),
    "half log-uniform, half zero": lambda k: _leading(_log_uniform(1e-3, (k + 1) // 2), k),
    "three clusters": lambda k: np.sort(np.array([1.0, 1e-2, 1e-4])[np.arange(k) % 3])[::-1],
}

SPECTRA: tuple[str, ...] = tuple(_SPECTRA)
"""Names that :func:`spectrum` takes: gram-newton-schulz's stress test, then adversarial ones."""


def spectrum(name: str, k: int) -> np.ndarray:
    """Return the singular values of a stress spectrum, largest first.

    Parameters
    ----------
    name : str
        One of :data:`SPECTRA`.
    k : int
        Number of singular values, at least 1.

    Returns
    -------
    ndarray, shape (k,)
        Nonnegative; not normalised (only "gamma" exceeds 1).

    Raises
    ------
    ValueError
        For an unknown name, or k below 1.

    Examples
    --------
    >>> spectrum("rank two", 4).tolist()
    [1.0, 0.32, 0.0, 0.0]
    """
    name, k = choice("spectrum", name, SPECTRA), count("k", k, most=10 * LARGEST)
    return np.array(_SPECTRA[name](k), dtype=np.float64)
