"""The orthogonal Procrustes problem."""

from __future__ import annotations

import functools
from typing import Any, cast

from polarlib.arrays.checks import flag, number
from polarlib.arrays.entered import enter
from polarlib.arrays.entry import ArrayT, as_matrix, check_same_place, check_stacks
from polarlib.arrays.functions import common_dtype, constant
from polarlib.arrays.library import astype_like, at_least_single, format_name
from polarlib.arrays.ops import Ops
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.decomposition import unitary_factor
from polarlib.engine.rules import differentiable_unitary
from polarlib.uses.nearest import found_rotation, refuse_complex

Array = Any


@looks
@under_default_settings
def procrustes(
    a: ArrayT, b: ArrayT, *, rotation: bool = False, regularization: float = 0.0
) -> ArrayT:
    """Return the orthogonal (unitary) Q for which ``A Q`` is nearest to B in the Frobenius norm.

    Q is the matrix of :func:`scipy.linalg.orthogonal_procrustes`. Stacks of matrices and arrays of
    other libraries are accepted too. Rows of A and B are points, or observations. To align clouds
    of points, use :func:`polarlib.align`, or subtract the means first. The factor s that makes
    ``s A Q`` nearest to B is ``sum(conj(A Q) * B).real / sum(abs(A)**2)``.

    Parameters
    ----------
    a, b : array_like, shape (..., m, n)
        Of one array library and device; leading axes broadcast. Not modified. Integers are
        converted to float64.
    rotation : bool, optional
        Restrict Q to rotations, det Q = +1, for real matrices (Kabsch's algorithm).
    regularization : float, optional
        For derivatives by torch or JAX, with respect to both arguments: see
        :func:`nearest_rotation`. Without `rotation` the sums d are those of any two singular values
        of ``A^H B``.

    Returns
    -------
    array, shape (..., n, n)
        Unitary polar factor of ``A^H B``, or the rotation nearest to it. Its dtype is the one to
        which the library promotes those of `a` and `b`, or float32 if the library has no rule for
        two dtypes of 16 bits. Q is unique if ``A^H B`` has full rank (for rotations see
        :func:`nearest_rotation`); otherwise one of the best is returned.

    Raises
    ------
    TypeError
        If `a` or `b` is not an array of numbers, if they are of two array libraries, or if they
        are complex and a rotation is requested.
    ValueError
        For shapes that do not match, two devices, NaN or infinity, or a negative regularization.
        Also for derivatives where Q is not unique, as in :func:`nearest_rotation`.
    ConvergenceWarning
        For rotations, as in :func:`nearest_rotation`.

    References
    ----------
    P. H. Schonemann, Psychometrika 31 (1966) 1-10. N. J. Higham, Functions of Matrices (SIAM,
    2008), section 8.1. W. Kabsch, Acta Cryst. A 32 (1976) 922-923.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> bool(np.allclose(procrustes(a, a @ quarter_turn), quarter_turn))
    True
    """
    a, b, ops = pair_of(a, b)
    if flag("rotation", rotation):
        refuse_complex(a, "procrustes(rotation=True)")
    r = number("regularization", regularization, 0)
    # Each matrix is divided by its own power of two: Q is the same, and A^H B cannot overflow.
    x, y = enter(a, "a", ops=ops).x, enter(b, "b", ops=ops).x
    product = ops.matmul(ops.adjoint(x), y)
    if 0 in product.shape:
        return cast(ArrayT, astype_like(product, a, ops))
    find = found_rotation if rotation else functools.partial(unitary_factor, name="procrustes")
    if 0 in x.shape:  # without points every Q is optimal; the product keeps it in a recorded graph
        return cast(ArrayT, astype_like(constant(ops, find, product) + product * 0.0, a, ops))
    # In at least single precision, so that the rule of derivatives can use the factors as they are.
    q = differentiable_unitary(find, product, find, rotation=rotation, regularization=r)
    return cast(ArrayT, astype_like(q, a, ops))


def pair_of(a: Array, b: Array, name: str = "a", other: str = "b") -> tuple[Array, Array, Ops]:
    """Return two stacks of matrices of one shape, library and dtype; messages use their names."""
    (a, ops), (b, _) = as_matrix(a, name), as_matrix(b, other)
    check_same_place(a, name, b, other)
    shapes, both = (tuple(a.shape), tuple(b.shape)), f"{name} and {other}"
    if shapes[0][-2:] != shapes[1][-2:]:
        raise ValueError(
            f"{both} must have the same rows and columns, got {shapes[0]}, {shapes[1]}"
        )
    check_stacks((name, a), (other, b))
    if a.dtype != b.dtype:
        # Libraries have no promotion rules for formats of 8 bits.
        a, b = (at_least_single(x, ops) if "float8" in format_name(x) else x for x in (a, b))
        common = common_dtype(a, b, ops)
        a, b = ops.xp.astype(a, common), ops.xp.astype(b, common)
    return a, b, ops.functional(a, b)
