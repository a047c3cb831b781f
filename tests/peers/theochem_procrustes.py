"""The tests of theochem's procrustes, with its orthogonal, rotational and generalized ones ours.

Its padding, centring and scaling of the inputs, and its measure of the error, stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import frame
import numpy as np

import polarlib

NAME = "theochem procrustes"
REPOSITORY = "https://github.com/theochem/procrustes"
COMMIT = None
PACKAGE = "procrustes"
DISTRIBUTION = "qc-procrustes"
TESTS = (
    "procrustes.test.test_orthogonal",
    "procrustes.test.test_rotational",
    "procrustes.test.test_generalized",
)
LONG = True
NOT_RUN = {
    "test_orthogonal.py::test_two_sided_*": "two-sided: an example on SciPy's functions, "
    "docs/guide/shapes.md",
}

Array = Any


def one_sided(find: Callable[[Array, Array], Array]) -> Callable[..., Any]:
    """A function of theochem's signature for one that finds T of A T near B."""

    def solve(
        a: Array,
        b: Array,
        pad: bool = True,
        translate: bool = False,
        scale: bool = False,
        unpad_col: bool = False,
        unpad_row: bool = False,
        check_finite: bool = True,
        weight: Array | None = None,
        lapack_driver: str = "gesvd",
    ) -> Any:
        from procrustes.utils import ProcrustesResult, compute_error, setup_input_arrays

        options = unpad_col, unpad_row, pad, translate, scale, check_finite, weight
        a, b = setup_input_arrays(a, b, *options)
        t = find(a, b)
        return ProcrustesResult(error=compute_error(a, b, t), new_a=a, new_b=b, t=t, s=None)

    return solve


def rotation(a: Array, b: Array) -> Array:
    """By the function that also moves and scales."""
    return polarlib.align(a, b, translation=False).rotation


def generalized(
    array_list: list[Array],
    ref: Array | None = None,
    tol: float = 1e-7,
    n_iter: int = 200,
    check_finite: bool = True,
) -> tuple[list[Array], float]:
    """All shapes, turned to their mean, which lies as `ref` or the first shape does."""
    found = polarlib.generalized_procrustes(
        np.stack(array_list), translation=False, reflection=True, max_iterations=n_iter
    )
    aligned = found.alignments(np.stack(array_list))
    turn = polarlib.procrustes(found.mean, array_list[0] if ref is None else ref)
    return list(aligned @ turn), float(found.objective[-1])


def install() -> None:
    """Replace the three functions."""
    frame.replace("procrustes.orthogonal.orthogonal", one_sided(polarlib.procrustes))
    frame.replace("procrustes.rotational.rotational", one_sided(rotation))
    frame.replace("procrustes.generalized.generalized", generalized)
