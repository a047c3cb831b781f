"""Method "zolotarev" (Zolo-PD): Zolotarev's functions by QR and Cholesky factorisations."""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from polarlib._methods.newton_schulz import settle
from polarlib._methods.qdwh import form, resolvent
from polarlib._methods.reduction import rounded_down, start
from polarlib._schedules.steps import Rational
from polarlib.arrays.formats import format_of
from polarlib.arrays.functions import norm_1
from polarlib.arrays.library import format_name
from polarlib.arrays.ops import Ops
from polarlib.design.zolotarev import best_steps
from polarlib.engine.drive import drive
from polarlib.result import Run

Array = Any

# With 8 poles two iterations suffice for condition numbers to 1e16; more poles are less stable.
# Nakatsukasa and Freund (2016), section 4.3.
MOST_POLES = 8
# Largest n for which the terms are factorised as one stack, which is twice as fast with torch and
# JAX on CPUs. For n = 128 it is not faster, and takes more memory. By experiment.
STACKED = 64


def zolotarev(
    x: Array,
    ops: Ops,
    *,
    tol: float,
    callback: Callable[[int, Array], None] | None = None,
    lower: float | None = None,
    poles: int | None = None,
) -> tuple[Array, Run]:
    """Two iterations of Zolotarev's best rational function, with up to 8 independent poles.

    The iteration is ``X <- M (X + sum_j a_j X (X^H X + c_j I)^-1)`` with r terms. r is `poles`, or
    the least number for which two iterations suffice on the certified interval [l, 1]. The bound
    costs as much as in QDWH, and an iteration one Gram product. A well-conditioned pole (all of the
    last iteration) costs a Cholesky factorisation and two triangular solves. Other poles cost twice
    that and a product, or QR of a 2n x n stack and a product. At the end a Gram product checks the
    result, and Newton-Schulz steps follow if it fails. The work is more than that of QDWH, in fewer
    iterations with independent terms. Backward stable. Singular values that are exactly zero stay
    zero. `lower` is a lower bound of sigma_min / sigma_max, if known.

    References
    ----------
    Y. Nakatsukasa, R. W. Freund, SIAM Rev. 58 (2016) 461-493, Algorithm 5.1.
    """
    n = x.shape[-1]
    eps = format_of(format_name(x)).epsilon
    done = start(x, ops, callback, lower=lower)

    def apply(planned: tuple[Rational, list[str]]) -> tuple[Array, int]:
        step, hows = planned
        terms, spent = partial_fractions(done.x, done.formed_gram(), step, hows, ops)
        done.gram = None  # free its storage before the next iterate is formed
        # The next Gram matrix, for the next iteration or the check, is counted with the step.
        return ops.combine((step.scale, step.scale), (done.x, terms)), spent + 1

    drive(done, plan(done.lower, n, eps, poles), apply)
    # With a lower bound at rounding level the smallest singular values may end below 1.
    return settle(done, ops, tol)


def plan(l: float, n: int, eps: float, poles: int | None) -> Iterator[tuple[Rational, list[str]]]:
    """Yield each step, and the form of the inverse for each of its poles."""
    low, high = l, 1.0
    for step, error in zip(*steps_for(l, eps, poles), strict=True):
        yield step, [form((c + high * high) / (c + low * low), n, eps) for c in step.poles]
        low, high = 1 - error, 1 + error


def partial_fractions(
    x: Array,
    gram: Array,
    step: Rational,
    hows: Sequence[str],
    ops: Ops,
) -> tuple[Array, int]:
    """Return ``sum_j a_j X (X^H X + c_j I)^-1``, and the number of products."""
    poles = sorted(zip(hows, step.poles, step.residues, strict=True))
    small = x.ndim == 2 and x.shape[-1] <= STACKED
    one = ops.xp.ones_like(norm_1(x, ops))
    total, matmuls = None, 0
    for how, group in itertools.groupby(poles, key=operator.itemgetter(0)):
        members = list(group)
        inverses: list[Any] = [1 / c for _, c, _ in members]
        weights: list[Any] = [a / c for _, c, a in members]
        if small:
            inverses, weights = ([ops.xp.stack([one * v for v in w])] for w in (inverses, weights))
        for c, w in zip(inverses, weights, strict=True):
            term, spent = resolvent(x, c, w, ops, how=how, gram=gram)
            term = ops.xp.sum(term, axis=0) if small else term
            total = term if total is None else ops.combine((1.0, 1.0), (total, term))
            del term
        matmuls += spent * len(members)
    return total, matmuls


def steps_for(l: float, eps: float, poles: int | None) -> tuple[tuple[Rational, ...], list[float]]:
    """Return steps for [l, 1] with `poles` poles; by default the fewest for two iterations."""
    return _designed(min(rounded_down(l), 1 - 2.0**-10), 4 * eps, poles)


@functools.lru_cache(maxsize=256)
def _designed(
    l: float, tolerance: float, poles: int | None
) -> tuple[tuple[Rational, ...], list[float]]:
    def two(r: int) -> bool:
        return len(best_steps(r, l, tolerance)[0]) <= 2

    r = poles or 1 + bisect.bisect_left(range(1, MOST_POLES), True, key=two)
    return best_steps(r, l, tolerance)
