"""A user's script: arrays keep their type. Checked by mypy and pyright, never run."""

from typing import TYPE_CHECKING, assert_type

import numpy as np
import numpy.typing as npt

import polarlib
from polarlib import Alignment, PolarResult, Schedule, Trace, design, norms

if TYPE_CHECKING:
    from torch import Tensor

Matrix = npt.NDArray[np.float64]


def on_the_host(a: Matrix, b: Matrix) -> None:
    """Call the functions of matrices with NumPy arrays."""
    u, h = polarlib.polar(a)
    assert_type((u, h), tuple[Matrix, Matrix])
    assert_type(polarlib.polar(a, side="left"), PolarResult[Matrix])
    assert_type(polarlib.polar(a).unitary @ b, Matrix)
    assert_type(polarlib.polar(a)[1], Matrix)
    assert_type(polarlib.orthogonalize(a, schedule="jordan", steps=5, out=b), Matrix)
    assert_type(polarlib.orthogonalize_all([a, b], form="gram"), list[Matrix])
    assert_type(polarlib.nearest_orthogonal(a), Matrix)
    assert_type(polarlib.nearest_rotation(a, regularization=0.1), Matrix)
    assert_type(polarlib.procrustes(a, b), Matrix)
    assert_type(polarlib.align(a, b, scale=True), Alignment[Matrix])
    assert_type(polarlib.align(a, b).rotation, Matrix)
    assert_type(polarlib.top_singular(a, 3)[1], Matrix)
    assert_type(polarlib.sqrtm(polarlib.signm(a)), Matrix)
    assert_type(norms.spectral().lmo(a), Matrix)
    polarlib.nearest_orthogonal([[0.0, -3.0], [2.0, 0.0]]).tolist()


def on_a_device(g: "Tensor") -> "Tensor":
    """Call the same functions with tensors of torch."""
    u, h = polarlib.polar(g.double())
    return polarlib.orthogonalize(u.float() @ h.detach()) + norms.lp(2).lmo(g)


def schedules(a: Matrix) -> None:
    """Design a schedule, and measure it."""
    s = design.greedy(1e-3, [5, 5, 5])
    assert_type(design.for_precision("bfloat16", 1e-3, steps=5), Schedule)
    assert_type(s[:2] + s[2:], Schedule)
    assert_type(polarlib.measure(a, s), Trace)
    polarlib.measure(a, "jordan").to_csv("trace.csv")
    print(s.error(1e-3) + s.certify().upper, polarlib.polar(a).orthogonality)  # noqa: T201
