"""polarlib.polar on the grid of cases that jax.scipy.linalg.polar documents, and beyond it.

Run it: ``python tests/peers/jax_grid.py``; ``--all`` takes every case instead of every seventh.
Arrays are JAX's own. Ours must be polar factors by :mod:`polarlib.testing` in every case; where JAX
has the case too, both must agree as closely as the condition number lets them, and ours must not be
the less accurate one. Exit code 0 says that all of this held.

JAX, by its documentation: stacks of matrices, sides "right" and "left", methods "svd" (any shape)
and "qdwh" (m >= n for the right side, m < n for the left one: anything else is refused).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import polarlib
from polarlib.testing import assert_polar, with_singular_values

SHAPES = [(1, 1), (4, 4), (9, 9), (20, 8), (8, 20), (3, 6, 4), (2, 3, 4, 6)]
DTYPES = ["float32", "float64", "complex64", "complex128"]
SIDES = ["right", "left"]
METHODS = ["svd", "qdwh"]
CONDITIONS = [1.0, 10.0, 1e4, 1e12]
ZEROS = [0, 1, 3]  # singular values that are zero, in matrices that have more of them
SCALES = [1e-3, 1.0, 1e3]
STRIDE = 7  # of cases, prime to the lengths above

# By experiment. Our errors may be twice JAX's, or twice so many epsilons: the worst makes 24 in
# all, in the larger Hermitian factor of wide matrices without full rank.
FLOOR = 20.0
# The factors may be so many epsilons apart, times the condition number and sqrt(k); 4.5 at worst.
APART = 20.0


class Case(NamedTuple):
    """One matrix or stack, and what is asked of it."""

    shape: tuple[int, ...]
    dtype: str
    side: str
    method: str
    condition: float
    zeros: int
    scale: float

    @property
    def supported(self) -> bool:
        """Whether JAX has it."""
        wide = self.shape[-2] < self.shape[-1]
        return self.method == "svd" or wide == (self.side == "left")

    @property
    def epsilon(self) -> float:
        """Machine epsilon of the dtype."""
        return float(np.finfo(self.dtype).eps)


def cases(every: bool) -> Iterator[Case]:
    """The grid, or every `STRIDE`-th case of it."""
    axes = (SHAPES, DTYPES, SIDES, METHODS, CONDITIONS, ZEROS, SCALES)
    known = (Case(*values) for values in itertools.product(*axes))
    fitting = [c for c in known if c.zeros < min(c.shape[-2:])]
    yield from fitting if every else fitting[::STRIDE]


def matrices(case: Case) -> np.ndarray:
    """Matrices with geometric singular values, the last ones zero."""
    *batch, m, n = case.shape
    k = min(m, n)
    s = np.zeros(k)
    s[: k - case.zeros] = np.geomspace(1.0, 1 / case.condition, k - case.zeros)
    count = int(np.prod(batch, dtype=int))
    stack = [
        with_singular_values(case.scale * s, m, n, seed=i, dtype=case.dtype) for i in range(count)
    ]
    return np.stack(stack).reshape(case.shape)


def defects(a: np.ndarray, u: np.ndarray, h: np.ndarray, side: str) -> tuple[float, float]:
    """Backward error and orthogonality, the worst of a stack, in units of 1."""
    a, u, h = (x.astype(np.result_type(x.dtype, np.float64)) for x in (a, u, h))
    product = u @ h if side == "right" else h @ u
    size = np.linalg.norm(a, axis=(-2, -1))
    backward = np.linalg.norm(a - product, axis=(-2, -1)) / np.where(size == 0, 1, size)
    adjoint = np.conj(np.swapaxes(u, -1, -2))
    tall = u.shape[-2] >= u.shape[-1]
    gram = adjoint @ u if tall else u @ adjoint
    off = np.linalg.norm(gram - np.eye(gram.shape[-1]), axis=(-2, -1)) / np.sqrt(gram.shape[-1])
    return float(backward.max()), float(off.max())


def check(case: Case, jnp: Any, theirs: Any) -> str:
    """One case; what is wrong, or nothing."""
    a = matrices(case)
    x = jnp.asarray(a)
    result = polarlib.polar(x, side=case.side, method=case.method)
    u, h = (np.asarray(t) for t in result)
    eps, k = case.epsilon, min(case.shape[-2:])
    try:
        assert_polar(a, u, h, side=case.side)
    except AssertionError as error:
        return str(error)
    if not result.converged or u.dtype != a.dtype or h.dtype != a.dtype:
        return f"{result!r}, dtypes {u.dtype}, {h.dtype}"
    if not case.supported:
        return ""
    v, p = (np.asarray(t) for t in theirs(x, side=case.side, method=case.method))
    ours, peer = defects(a, u, h, case.side), defects(a, v, p, case.side)
    for name, mine, other in zip(("backward error", "orthogonality"), ours, peer, strict=True):
        if not mine <= 2 * max(other, FLOOR * eps):
            return f"{name} {mine:.1e}, JAX's is {other:.1e}"
    if case.zeros or case.condition * eps > 1e-3:
        return ""  # U is not determined, and JAX's QDWH does not complete it
    apart = np.linalg.norm(u - v, axis=(-2, -1)).max()
    limit = APART * case.condition * np.sqrt(k) * eps
    return "" if apart <= limit else f"the factors are {apart:.1e} apart, above {limit:.1e}"


def main(arguments: list[str]) -> int:
    """Run the grid and return an exit code."""
    try:
        import jax
    except ImportError:
        sys.stderr.write("jax is not installed\n")
        return 2
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from jax.scipy.linalg import polar as theirs

    count = compared = failed = 0
    for case in cases("--all" in arguments):
        problem = check(case, jnp, theirs)
        count, compared = count + 1, compared + case.supported
        if problem:
            failed += 1
            sys.stderr.write(f"{case}: {problem}\n")
    sys.stdout.write(f"{count} cases, {compared} compared with JAX, {failed} failed\n")
    return int(failed > 0 or compared == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
