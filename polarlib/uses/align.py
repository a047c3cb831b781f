"""Alignment of clouds of points: the Procrustes problem with weights, scale and translation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from polarlib.arrays.checks import flag, number
from polarlib.arrays.entry import as_matrix, check_same_place, check_stacks
from polarlib.arrays.functions import common_dtype
from polarlib.arrays.library import at_least_single, dtype_name, is_complex
from polarlib.arrays.pytrees import Pytree
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.engine.equation import Equation
from polarlib.files.tables import html_table
from polarlib.uses.aligning import entered_clouds, solved, weights_of
from polarlib.uses.procrustes import pair_of

# The type of array of an alignment.
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class Alignment(Pytree, Generic[A]):
    """Result of :func:`align`: the b_i are nearest to ``scale * a_i @ rotation + translation``.

    ``alignment(points)`` applies the transformation to other points. For JAX an alignment is a
    pytree whose leaves are its attributes.

    Attributes
    ----------
    rotation : array, shape (..., d, d)
        R, which multiplies rows of points from the right.
    scale : array, shape (...)
        s >= 0.
    translation : array, shape (..., d)
        t.
    singular_values : array, shape (..., d)
        Singular values of the covariance C, descending. Small ones leave R badly determined.
    rmsd : array, shape (...)
        ``sqrt(sum w_i |s a_i R + t - b_i|^2 / sum w_i)``, computed from the residuals.
    unique : array of bool, shape (...)
        Whether R is the only minimiser, to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib import align
    >>> a = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> b = np.array([[1.0, 1.0], [1.0, 3.0], [0.0, 1.0]])
    >>> alignment = align(a, b)
    >>> bool(np.allclose(alignment(a), b))
    True
    >>> alignment([[1.0, 0.0]]).round(12).tolist()  # other points, the same motion
    [[1.0, 2.0]]
    """

    rotation: A
    scale: A
    translation: A
    singular_values: A
    rmsd: A
    unique: A

    def _repr_html_(self) -> str:
        rows = {name.replace("_", " "): getattr(self, name) for name in self.__dataclass_fields__}
        return html_table("Alignment", rows)

    @looks
    @under_default_settings
    def __call__(self, points: Any) -> A:
        """Return ``scale * points @ rotation + translation``.

        Parameters
        ----------
        points : array_like, shape (..., n, d)
            Of the alignment's library and device; leading axes broadcast. Not modified.

        Returns
        -------
        array, shape (..., n, d)
            With the dtype to which the library promotes those of `points` and of the alignment.

        Raises
        ------
        TypeError
            If `points` is not an array of numbers, or of another library than the alignment.
        ValueError
            If `points` is on another device, has another number of columns, or has leading axes
            that do not broadcast.
        """
        x, ops = as_matrix(points, "points")
        here: Alignment[Any] = self
        r, t, s = here.rotation, here.translation[..., None, :], here.scale[..., None, None]
        check_same_place(x, "points", r, "the alignment")
        if x.shape[-1] != r.shape[-1]:
            raise ValueError(
                f"points must have {r.shape[-1]} columns, as the points of the alignment, got "
                f"shape {tuple(x.shape)}"
            )
        check_stacks(("points", x), ("the alignment", r))
        dtype = common_dtype(x, r, ops)
        ops = ops.functional(x, r, t, s)
        x, r, t, s = (at_least_single(p, ops) for p in (x, r, t, s))
        if x.dtype != r.dtype:
            wide = common_dtype(x, r, ops)
            x, r = ops.xp.astype(x, wide), ops.xp.astype(r, wide)
        y = ops.matmul(x, r) * s + t
        return cast(A, y if y.dtype == dtype else ops.xp.astype(y, dtype))


@looks
@under_default_settings
def align(
    points: A,
    targets: Any,
    *,
    weights: Any = None,
    scale: bool = False,
    translation: bool = True,
    reflection: bool = False,
    regularization: float = 0.0,
) -> Alignment[A]:
    """Return the rotation, translation and scale that map points to targets, by least squares.

    The function minimises ``sum w_i |s a_i R + t - b_i|^2`` over rotations R, translations t and,
    optionally, scales s >= 0. The problem is known by the names of Wahba, Kabsch and Umeyama.

    Parameters
    ----------
    points, targets : array_like, shape (..., n, d)
        The a_i and the b_i as rows, n >= 1, of one array library and device. Leading axes
        broadcast. Not modified. Integers are converted to float64.
    weights : array_like, shape (..., n), optional
        The w_i >= 0, not all zero; equal by default. Leading axes broadcast. Points of weight zero
        are ignored.
    scale, translation : bool, optional
        Whether s and t are computed; otherwise they are 1 and 0.
    reflection : bool, optional
        Whether R may be any orthogonal matrix (any unitary matrix for complex points).
    regularization : float, optional
        For derivatives of R and t by torch or JAX: see :func:`nearest_rotation`.

    Returns
    -------
    Alignment
        Arrays of the library, device and dtype of the points. (If the dtypes of `points` and
        `targets` differ, the one to which the library promotes them.) If the best R is not unique,
        one of the best is returned, `unique` is False, and the residual is optimal. Such points lie
        on a line or coincide, are fewer than d, or are mirror images with equal singular values.

    Raises
    ------
    TypeError
        If an argument is not an array of numbers, if the arguments are of two array libraries, or
        if they are complex without ``reflection=True``.
    ValueError
        For shapes that do not match, no points, two devices, NaN or infinity, weights that are
        negative or all zero, or a negative regularization. With torch or JAX, also when a
        derivative is computed without regularization where R is not unique; in code that JAX traces
        the derivative is NaN instead.
    ConvergenceWarning
        If no rotation passes the check of optimality.

    Notes
    -----
    With weighted means, ``C = sum w_i (a_i - mean a)^H (b_i - mean b) = U S V^H``,

        R = U diag(1, ..., 1, det(U V^T)) V^T  (U V^H for reflections),
        s = max(0, Re tr(R^H C) / sum w_i |a_i - mean a|^2),    t = mean b - s mean a R.

    s is 1 where the points coincide to rounding, ``sum w_i |a_i - mean a|^2 <= (8 eps max |a_i|)^2
    sum w_i``. R is unique if ``sigma_(d-1) + det(U V^T) sigma_d > max(n, d) eps sigma_1``; with
    reflections, if ``sigma_d > max(n, d) eps sigma_1``. Points are centred before any product. With
    ``translation=False`` they are not, and components below about ``sqrt(eps)`` of the largest are
    lost in the rounding of C: R is then not optimal for them. The cost is about ten passes over the
    points and one rotation per cloud. Stacks are computed as a whole.

    If R is unique, all attributes but `unique` have derivatives with respect to points, targets and
    weights. The derivatives of `scale` and `rmsd` need no derivative of R. They also exist if no
    point depends on the choice of R, as for two clouds on lines or two points each. The derivative
    of `rmsd` is zero where the residual is zero to rounding. See docs/guide/align.md.

    References
    ----------
    G. Wahba, A least squares estimate of satellite attitude, SIAM Rev. 7 (1965) 409. W. Kabsch,
    Acta Cryst. A 32 (1976) 922-923. S. Umeyama, IEEE Trans. PAMI 13 (1991) 376-380, equations 34 to
    43.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> b = np.array([[1.0, 1.0], [1.0, 5.0], [-1.0, 1.0]])  # turned by 90 degrees, twice as large
    >>> alignment = align(a, b, scale=True)
    >>> alignment.rotation.round(12).tolist(), float(alignment.scale.round(12))
    ([[0.0, 1.0], [-1.0, 0.0]], 2.0)
    >>> bool(alignment.unique), bool(alignment.rmsd < 1e-15)
    (True, True)
    """
    a, b, ops = pair_of(points, targets, "points", "targets")
    scale, translation = flag("scale", scale), flag("translation", translation)
    reflection = flag("reflection", reflection)
    r = number("regularization", regularization, 0)
    if is_complex(a) and not reflection:
        raise TypeError(
            f"align needs real points, got {dtype_name(a)}: the best special unitary matrix has no "
            "closed form; pass reflection=True for the best unitary one"
        )
    if a.shape[-2] == 0:
        raise ValueError(f"points must be at least one, got shape {tuple(a.shape)}")
    w = None if weights is None else weights_of(weights, a)
    if w is not None:
        check_stacks(("points", a), ("targets", b), ("weights", w))
    ops = ops if w is None else ops.functional(w)
    equation = Equation("polar" if reflection else "rotation", max(a.shape[-2:]), r)
    clouds = entered_clouds(a, b, w, ops)
    r, s, t, values, rmsd, unique = solved(clouds, equation, scale, translation, ops)
    kind = ops._real_dtype(a)
    return Alignment(
        ops.xp.astype(r, a.dtype),
        ops.xp.astype(s, kind)[..., 0, 0],
        ops.xp.astype(t, a.dtype)[..., 0],
        ops.xp.astype(values, kind)[..., 0, :],
        ops.xp.astype(rmsd, kind)[..., 0, 0],
        unique[..., 0, 0],
    )
