"""Divisions of a normalisation as operators of torch.

The operators are ``polarlib::divide_by_norm`` and ``polarlib::divide_by_gram_``. On CUDA they are
two kernels of Triton, if it is installed; otherwise they consist of operators of torch. polarlib
does not import torch: the operators are defined when torch is imported.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

from polarlib.arrays import triton_normaliser
from polarlib.arrays.library import import_library
from polarlib.arrays.normaliser import Normaliser

Array = Any


_LOCK = threading.Lock()


def normaliser() -> Normaliser:
    """Return functions that call the operators, which are defined once per process."""
    with _LOCK:  # torch refuses a second operator with the same name
        return _made()


@functools.cache
def _made() -> Normaliser:
    torch: Any = import_library("torch")
    library = torch.library.Library("polarlib", "FRAGMENT")
    library.define("divide_by_norm(Tensor x, float factor, bool power) -> Tensor")
    library.define(
        "divide_by_gram_(Tensor(a!) y, Tensor(b!) g, str bound, float slack, float sums, "
        "float safety) -> ()"
    )
    plain = functools.partial(_divide_by_norm, torch), functools.partial(_divide_by_gram, torch)
    fused = functools.partial(_norm_on_cuda, torch), functools.partial(_gram_on_cuda, torch)
    known = (lambda x, *_: torch.empty_like(x), lambda *_: None)
    for functions, key in ((plain, "CompositeExplicitAutograd"), (fused, "CUDA"), (known, "Meta")):
        for name, function in zip(("divide_by_norm", "divide_by_gram_"), functions, strict=True):
            library.impl(name, function, key)
    by_norm = torch.ops.polarlib.divide_by_norm.default
    in_place = torch.ops.polarlib.divide_by_gram_.default

    def by_gram(y: Array, g: Array, *how: Any, kept: Any = library) -> tuple[Array, Array]:
        in_place(y, g, *how)  # the operators live as long as their library, which is kept here
        return y, g

    return Normaliser(by_norm, by_gram)


# -- by operators of torch ---------------------------------------------------------------------


def _divide_by_norm(torch: Any, x: Array, factor: float, power: bool) -> Array:
    s = _divisor(torch, factor * _frobenius(torch, x))
    if power:  # NaN, which has no exponent, stays
        s = s / (2 * torch.frexp(s).mantissa)
    return torch.div(x, s, out=torch.empty_like(x))


def _divide_by_gram(
    torch: Any, y: Array, g: Array, bound: str, slack: float, sums: float, safety: float
) -> None:
    norm, n = _frobenius(torch, g), g.shape[-1]
    if bound == "moments":
        mean = g.diagonal(0, -2, -1).sum(-1, dtype=torch.float64)[..., None, None] / n
        variance = norm * norm * ((1 + sums) / n) - mean * mean
        size = mean + (variance.clamp(min=0) * (n - 1)).sqrt() + norm * slack
    else:
        size = norm * (1 + slack)
    s = _divisor(torch, size.sqrt()) * safety
    y.div_(s)
    g.div_(s * s)


def _frobenius(torch: Any, x: Array) -> Array:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float64)


def _divisor(torch: Any, s: Array) -> Array:
    """1 for 0, NaN for infinity."""
    return torch.where(s == 0, 1.0, torch.where(s.isfinite(), s, math.nan))


# -- by Triton ---------------------------------------------------------------------------------


def _norm_on_cuda(torch: Any, x: Array, factor: float, power: bool) -> Array:
    if not _fuses(x.device):
        return _divide_by_norm(torch, x, factor, power)
    x = x if _flat(x) is not None else x.contiguous()
    y = torch.empty_like(x)
    with torch.cuda.device(x.device):
        triton_normaliser.by_norm(_flat(x), _flat(y), factor, power)
    return y


def _gram_on_cuda(
    torch: Any, y: Array, g: Array, bound: str, slack: float, sums: float, safety: float
) -> None:
    flat = _flat(y), _flat(g)
    if None in flat or not _fuses(y.device):
        return _divide_by_gram(torch, y, g, bound, slack, sums, safety)
    with torch.cuda.device(y.device):
        triton_normaliser.by_gram(*flat, bound == "moments", slack, sums, safety)


def _flat(x: Array) -> Array | None:
    """The matrices as one stack that fills its storage, by rows; None if they do not fill it."""
    rows = x if x.is_contiguous() else x.mT
    return rows.reshape(-1, *rows.shape[-2:]) if rows.is_contiguous() else None


@functools.lru_cache(maxsize=64)
def _fuses(device: Any) -> bool:
    """Whether Triton is installed and compiles for a device: tried once, on a matrix of one."""
    torch: Any = import_library("torch")
    if not triton_normaliser.is_installed():
        return False
    one = torch.ones((1, 1, 1), dtype=torch.float32, device=device)
    try:
        with torch.cuda.device(device):
            triton_normaliser.by_norm(one, torch.empty_like(one), 1.0, True)
    except Exception:  # no compiler of C, no kernel for the device: each raises its own
        return False
    return True
