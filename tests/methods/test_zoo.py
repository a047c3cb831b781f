"""The zoo against factors of 50 digits: every matrix, every method, by the theory of perturbations.

The factors of a backward stable method are those of A + D, with D a few epsilons of A. How far
they may be from the factors of A is known: N. J. Higham, Functions of Matrices (SIAM, 2008),
section 8.2.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import scipy.linalg

from polarlib import polar
from polarlib._methods import METHODS
from polarlib.testing import zoo

METHODS_OF_POLAR = ["auto", *(name for name in METHODS if name not in ("qr", "small"))]
ZOOS = {
    "float64": dict(zoo(6)),
    "float32": dict(zoo(6, dtype="float32")),
    "complex64": dict(zoo(6, dtype="complex64")),
}

# Backward errors are no worse than SciPy's within this factor, or below so many epsilons of the
# format; the worst of all is at 0.6 of that limit. (SciPy makes 30 epsilons on graded columns.)
FACTOR, FLOOR = 4, 3
# Capped Cholesky steps make 24 epsilons by design: what they save is what hybrid is for.
FLOORS = {"hybrid": 8}
# newton_schulz stops where it meets the tolerance of polar(); the worst of the others makes 8.
ORTHOGONALITY = {"newton_schulz": 100}
OTHERWISE = 15

# -- exact arithmetic: complex matrices as real ones, in fixed point, as Python's integers --------

BITS = 166  # 50 digits


def fixed(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Matrix over a power of two, its real form [[Re, -Im], [Im, Re]] if it is complex."""

    def part(name: str) -> np.ndarray:
        values = [getattr(v, name) / scale for v in x.ravel().tolist()]
        whole = [int(mpmath.ldexp(v, BITS)) for v in values]
        return np.array(whole, object).reshape(x.shape)

    if x.size and isinstance(x.flat[0], complex | np.complexfloating | mpmath.mpc):
        re, im = part("real"), part("imag")
        return np.block([[re, -im], [im, re]])
    return part("real")


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y) >> BITS


def norm(x: np.ndarray) -> float:
    """Frobenius norm (sqrt(2) times, of a real form)."""
    return math.sqrt(sum(v * v for v in x.flat) >> BITS) / math.sqrt(2.0**BITS)


class Factors(NamedTuple):
    """A tall matrix over a power of two near its largest entry, and its factors."""

    a: np.ndarray
    u: np.ndarray
    h: np.ndarray

    @property
    def backward(self) -> float:
        """``||A - U H|| / ||A||``."""
        return norm(self.a - product(self.u, self.h)) / (norm(self.a) or 1.0)

    @property
    def orthogonality(self) -> float:
        """``||U^H U - I|| / sqrt(n)``."""
        eye = fixed(np.eye(self.u.shape[1]))
        return norm(product(self.u.T, self.u) - eye) / norm(eye)


def tall(a: np.ndarray) -> np.ndarray:
    return a if a.shape[0] >= a.shape[1] else a.conj().T


def unit(a: np.ndarray) -> float:
    return math.ldexp(1.0, math.frexp(np.abs(a).max())[1] - 1) if a.any() else 1.0


def small_side(a: np.ndarray) -> str:
    """Side of the smaller of the two Hermitian factors."""
    return "right" if a.shape[0] >= a.shape[1] else "left"


def returned(a: np.ndarray, u: np.ndarray, h: np.ndarray) -> Factors:
    """What a method made of `a`, digit by digit."""
    return Factors(fixed(tall(a), unit(a)), fixed(tall(u)), fixed(h, unit(a)))


@functools.cache
def reference(dtype: str, animal: str) -> tuple[Factors, np.ndarray]:
    """Factors and singular values by mpmath, checked by the properties that define factors."""
    a = tall(ZOOS[dtype][animal])
    with mpmath.workdps(70):
        is_complex = a.dtype.kind == "c"
        svd = mpmath.svd_c if is_complex else mpmath.svd_r
        one = mpmath.mpc(1) if is_complex else mpmath.mpf(1)
        x = mpmath.matrix(a.tolist()) / unit(a)
        p, s, q = svd(x)
        u, h = p * q, q.H * mpmath.diag(list(s)) * q
        factors = Factors(*(fixed(np.array(t.tolist(), object) * one) for t in (x, u, h)))
        assert min(s) >= 0
    assert factors.backward <= 1e-47
    assert factors.orthogonality <= 1e-47
    assert norm(factors.h - factors.h.T) <= 1e-47
    return factors, np.sort(np.array([float(v) for v in s]))


@functools.cache
def scipy_factors(dtype: str, animal: str) -> Factors:
    a = ZOOS[dtype][animal]
    return returned(a, *scipy.linalg.polar(a, side=small_side(a)))


def condition(a: np.ndarray, s: np.ndarray) -> float:
    """First-order change of U over that of A, from singular values in ascending order."""
    if a.shape[0] == a.shape[1] > 1 and a.dtype.kind != "c":
        return 2 / (s[0] + s[1])
    return 1 / s[0]


# -- the theory ------------------------------------------------------------------------------


def check(dtype: str, animal: str, u: np.ndarray, h: np.ndarray, method: str) -> None:
    """Everything that a backward stable method owes, SciPy's and the exact factors at hand."""
    orthogonality = ORTHOGONALITY.get(method, OTHERWISE)
    a, eps = ZOOS[dtype][animal], float(np.finfo(dtype).eps)
    exact, s = reference(dtype, animal)
    peer = scipy_factors(dtype, animal)
    found = returned(a, u, h)
    size = norm(exact.a)
    backward = FACTOR * max(peer.backward, FLOORS.get(method, FLOOR) * eps)
    assert found.backward <= backward
    assert found.orthogonality <= orthogonality * eps
    assert norm(found.h - found.h.T) == 0
    # The change of H is at most sqrt(2) times that of A.
    assert norm(found.h - exact.h) <= math.sqrt(2) * backward * size
    # Where a backward error may reach a singular matrix U is not determined.
    if s[0] > 10 * backward * size:
        change = condition(a, s) * backward * size + orthogonality * eps * norm(exact.u)
        assert norm(found.u - exact.u) <= change


@pytest.mark.thinned(3)
@pytest.mark.parametrize("animal", ZOOS["float64"])
@pytest.mark.parametrize("method", METHODS_OF_POLAR)
def test_double_precision(method, animal):
    a = ZOOS["float64"][animal]
    u, h = polar(a, method=method, side=small_side(a))
    check("float64", animal, u, h, method)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("method", METHODS_OF_POLAR)
def test_single_precision(method, dtype):
    for animal, a in ZOOS[dtype].items():
        u, h = polar(a, method=method, side=small_side(a))
        check(dtype, animal, u, h, method)


def test_most_of_the_zoo_has_a_unique_factor():
    sharp = [animal for animal in ZOOS["float64"] if reference("float64", animal)[1][0] > 1e-12]
    assert len(sharp) > 90
    assert {"frank", "hilbert", "kahan", "companion", "rotation near pi", "fourier"} <= set(sharp)


def test_a_real_factor_is_better_conditioned_than_its_smallest_singular_value_says():
    """Only the two smallest together matter: one of them, alone small, is harmless."""
    a = ZOOS["float64"]["condition 1e+00"] @ np.diag([1.0, 1, 1, 1, 1, 1e-8])
    exact = np.linalg.svd(a)
    for complex_ in (False, True):
        b = a.astype(complex) if complex_ else a
        for seed in range(5):
            rng = np.random.default_rng(seed)
            d = rng.standard_normal(a.shape) + (1j * rng.standard_normal(a.shape) * complex_)
            moved = norm(fixed(polar(b + 1e-12 * d).unitary - exact[0] @ exact[2]))
            limit = 1e-12 * norm(fixed(d)) * condition(b, exact[1][::-1])
            assert moved <= limit
            assert moved > 1e-3 * limit


@pytest.mark.parametrize("animal", ["gaussian tall", "wilkinson", "unitary"])
def test_a_wrong_factor_is_found(animal):
    a = ZOOS["float64"][animal]
    u, h = scipy.linalg.polar(a)
    check("float64", animal, u, (h + h.conj().T) / 2, "svd")
    eps = 2.0**-52
    turn = np.eye(len(a)) + 500 * eps * (np.eye(len(a), k=1) - np.eye(len(a), k=-1))
    wrong = [
        (scipy.linalg.qr(a, mode="economic")[0], h),
        (-u, -h),
        (u * (1 + 40 * eps), h * (1 - 40 * eps)),
        (u, h * (1 + 100 * eps)),
        (turn @ u, h),
    ]
    for v, p in wrong:
        with pytest.raises(AssertionError):
            check("float64", animal, v, (p + p.conj().T) / 2, "svd")
