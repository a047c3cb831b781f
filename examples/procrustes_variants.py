"""Other Procrustes problems with SciPy's functions, by ``python procrustes_variants.py``.

For each problem a check of the result is printed. polarlib aligns the points of an assignment.
"""

import itertools
import sys

import numpy as np
from scipy.linalg import eigh, solve_continuous_lyapunov, svd, svdvals
from scipy.optimize import linear_sum_assignment

import polarlib


def permutation(a, b):
    """Return the order p of the rows of A for which ``|A[p] - B|_F`` is least."""
    columns, rows = linear_sum_assignment(b @ a.T, maximize=True)
    return rows[np.argsort(columns)]


def two_sided(a, b):
    """Return orthogonal P, Q that minimise ``|P^T A Q - B|_F``, from ordered singular vectors."""
    (u, _, vh), (w, _, zh) = svd(a), svd(b)
    return u @ w.T, vh.T @ zh


def symmetric_two_sided(a, b):
    """Return the orthogonal Q that minimises ``|Q^T A Q - B|_F`` for symmetric A and B."""
    return eigh(a)[1] @ eigh(b)[1].T


def symmetric(a, b):
    """Return the symmetric X that minimises ``|A X - B|_F`` for A of full column rank."""
    return solve_continuous_lyapunov(a.T @ a, a.T @ b + b.T @ a)


def matched(a, b, sweeps=50):
    """Align points in unknown order: assignment and alignment alternate and reduce the error."""
    moved, residuals = a, []
    for _ in range(sweeps):
        order = permutation(moved, b)
        found = polarlib.align(a[order], b)
        moved = found(a)
        residuals.append(float(found.rmsd))
        if len(residuals) > 1 and residuals[-1] == residuals[-2]:
            break
    return order, found, residuals


def claims():
    """Solve each problem once, and compare the result with a lower bound."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 3))
    best = min(np.linalg.norm(a[list(p)] - b) for p in itertools.permutations(range(7)))
    yield f"permutation: {distance(a[permutation(a, b)], b)}, best of all 5040: {best:.12f}"

    p, q = two_sided(a, b)  # the bound: L. Mirsky, 1960
    yield f"two-sided: {distance(p.T @ a @ q, b)}, bound: {distance(svdvals(a), svdvals(b))}"

    s, t = a.T @ a, b.T @ b
    q = symmetric_two_sided(s, t)  # the bound: A. J. Hoffman and H. W. Wielandt, 1953
    yield f"one on both: {distance(q.T @ s @ q, t)}, bound: {distance(eigh(s)[0], eigh(t)[0])}"

    g = a.T @ (a @ symmetric(a, b) - b)  # the problem is convex: its gradient is g + g^T
    yield f"symmetric: gradient {np.linalg.norm(g + g.T) < 1e-13 and 'zero'}"

    c = rng.normal(size=(30, 3))
    turn, order = polarlib.nearest_rotation(np.eye(3) + 0.1 * c[:3]), rng.permutation(30)
    found, _, residuals = matched(c, (c @ turn + 0.1)[order])
    yield f"unknown order: {np.sum(found == order)} of 30 points, {len(residuals)} sweeps"


def distance(x, y):
    return f"{np.linalg.norm(x - y):.12f}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in claims())
