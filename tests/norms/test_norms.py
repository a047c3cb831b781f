"""Norms against references that know nothing of the library: definitions, certificates, search."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from conftest import HALF, LIBRARIES, library
from standin import cupy_standin

import polarlib
from polarlib import norms
from polarlib.arrays.numpy_ops import NumpyOps
from polarlib.norms import sums, unitary
from polarlib.testing import orthonormal, with_singular_values

INF = math.inf


# -- references: the definitions, on one NumPy matrix ------------------------------------------


def sigma(x):
    return np.linalg.svd(x, compute_uv=False)


def kp_norm(x, k, p):
    """Vector p-norm of the k largest singular values (QETLAB's kpNorm)."""
    return np.linalg.norm(sigma(x)[:k], p)


def kp_norm_dual(x, k, p):
    """QETLAB's kpNormDual: raise the tail to its mean level where that exceeds the entry before."""
    s = sigma(x)
    k = min(k, s.size)
    if p == 1:
        return max(s[0], s.sum() / k)
    if p == INF:
        return s.sum()
    for r in range(k - 1, -1, -1):
        level = s[r:].sum() / (k - r)
        if r == 0 or s[r - 1] > level:
            break
    return np.linalg.norm(np.append(s[:r], np.full(k - r, level)), p / (p - 1))


def vectors(x, p, axis):
    return np.linalg.norm(x, p, axis=axis)


@dataclass(frozen=True)
class Atom:
    """A norm with its definition and that of its dual; None where there is none to write down."""

    make: Callable[[], Any]
    value: Callable[[Any], float] | None
    dual: Callable[[Any], float]
    unitary: bool = True  # unitarily invariant; else signed permutations of rows and columns
    rank: int = 1  # smallest min(m, n)


def entries(p):
    return lambda x: np.linalg.norm(x.ravel(), p)


def schatten(p):
    return lambda x: np.linalg.norm(sigma(x), p)


def ky_fan(k, p=1):
    return functools.partial(kp_norm, k=k, p=p)


def ky_fan_dual(k, p=1):
    return functools.partial(kp_norm_dual, k=k, p=p)


def along(p, q, axis):
    return lambda x: np.linalg.norm(vectors(x, p, axis), q)


def weighted(*terms):
    return lambda x: sum(w * f(x) for w, f in terms)


ATOMS = {
    "spectral": Atom(norms.spectral, schatten(INF), schatten(1)),
    "nuclear": Atom(norms.nuclear, schatten(1), schatten(INF)),
    "frobenius": Atom(norms.frobenius, entries(2), entries(2)),
    "schatten(3)": Atom(lambda: norms.schatten(3), schatten(3), schatten(1.5)),
    "schatten(1.1)": Atom(lambda: norms.schatten(1.1), schatten(1.1), schatten(11)),
    "ky_fan(2)": Atom(lambda: norms.ky_fan(2), ky_fan(2), ky_fan_dual(2), rank=2),
    "ky_fan(3)": Atom(lambda: norms.ky_fan(3), ky_fan(3), ky_fan_dual(3), rank=3),
    "ky_fan(2, 2)": Atom(lambda: norms.ky_fan(2, 2), ky_fan(2, 2), ky_fan_dual(2, 2), rank=2),
    "ky_fan(3, 1.5)": Atom(
        lambda: norms.ky_fan(3, p=1.5), ky_fan(3, 1.5), ky_fan_dual(3, 1.5), rank=3
    ),
    "fanion(2)": Atom(lambda: norms.fanion(2), ky_fan_dual(2), ky_fan(2), rank=2),
    "ky_fan_dual(2, 2)": Atom(
        lambda: norms.ky_fan_dual(2, 2), ky_fan_dual(2, 2), ky_fan(2, 2), rank=2
    ),
    "ky_fan_dual(3, 4)": Atom(
        lambda: norms.ky_fan_dual(3, 4), ky_fan_dual(3, 4), ky_fan(3, 4), rank=3
    ),
    "lp(1)": Atom(lambda: norms.lp(1), entries(1), entries(INF), unitary=False),
    "lp(1.5)": Atom(lambda: norms.lp(1.5), entries(1.5), entries(3), unitary=False),
    "lp(inf)": Atom(lambda: norms.lp(INF), entries(INF), entries(1), unitary=False),
    "induced(1, 1)": Atom(
        lambda: norms.induced(1, 1), along(1, INF, 0), along(INF, 1, 0), unitary=False
    ),
    "induced(1, 2)": Atom(
        lambda: norms.induced(1, 2), along(2, INF, 0), along(2, 1, 0), unitary=False
    ),
    "induced(1, 3)": Atom(
        lambda: norms.induced(1, 3), along(3, INF, 0), along(1.5, 1, 0), unitary=False
    ),
    "induced(2, inf)": Atom(
        lambda: norms.induced(2, INF), along(2, INF, 1), along(2, 1, 1), unitary=False
    ),
    "induced(inf, inf)": Atom(
        lambda: norms.induced(INF, INF), along(1, INF, 1), along(INF, 1, 1), unitary=False
    ),
    "induced(3, inf)": Atom(
        lambda: norms.induced(3, INF), along(1.5, INF, 1), along(3, 1, 1), unitary=False
    ),
    "2.5 * spectral": Atom(
        lambda: 2.5 * norms.spectral(),
        weighted((2.5, schatten(INF))),
        weighted((0.4, schatten(1))),
    ),
    "f_muon": Atom(
        lambda: norms.f_muon(0.3), None, weighted((0.3, schatten(1)), (0.7, entries(2)))
    ),
    "f_neon": Atom(
        lambda: norms.f_neon(0.6), None, weighted((0.6, schatten(INF)), (0.4, entries(2)))
    ),
    "f_fanion(2)": Atom(
        lambda: norms.f_fanion(2, 0.8),
        None,
        weighted((0.8, ky_fan(2)), (0.2, entries(2))),
        rank=2,
    ),
}
# Their primal norms raise.
WITHOUT_VALUE = {
    "s_muon": Atom(
        lambda: norms.s_muon(0.5, 0.2),
        None,
        weighted((0.5, schatten(1)), (0.1, entries(1))),
        unitary=False,
    ),
    "s_fanion(2)": Atom(
        lambda: norms.s_fanion(2, 0.25, 0.1),
        None,
        weighted((0.25, ky_fan(2)), (0.075, entries(1))),
        unitary=False,
        rank=2,
    ),
}
# Norms with tests of their own: of one shape, and other names of norms above.
ELSEWHERE = {"minkowski_sum", "neon", "rms_to_rms"}
SHAPES = [(5, 5), (7, 4), (4, 7), (1, 1), (1, 4), (4, 1), (2, 3, 5, 3)]
KINDS = ("real", "complex", "rank 2", "tied", "equal entries", "zero")


def sample(shape, kind="real", seed=0):
    rng = np.random.default_rng(seed)
    g = rng.standard_normal(shape)
    if kind == "complex":
        return g + 1j * rng.standard_normal(shape)
    m, n = shape[-2:]
    if kind == "rank 2":
        return rng.standard_normal((*shape[:-1], 2)) @ rng.standard_normal((*shape[:-2], 2, n))
    if kind == "tied":  # the three largest, so that k = 2 cuts through
        s = np.where(np.arange(min(m, n)) < 3, 2.0, 0.5)
        return with_singular_values(s, m, n) * np.ones((*shape[:-2], 1, 1))
    if kind == "equal entries":
        return np.where(g > 0, 1.0, -1.0)
    return g * (kind != "zero")


def cases(atoms, shapes=SHAPES):
    return [
        pytest.param(atom, shape, id=f"{name}-{shape}")
        for name, atom in atoms.items()
        for shape in shapes
        if min(shape[-2:]) >= atom.rank
    ]


def each(f, x):
    """A reference on every matrix of a stack."""
    flat = [f(a) for a in x.reshape(-1, *x.shape[-2:])]
    return np.reshape(flat, x.shape[:-2])


def pair(g, t):
    return np.sum((g.conj() * t).real, axis=(-2, -1))


def f_parts(n):
    """Weights and k of an F-variant (k = None: all)."""
    (a, top), (b, _) = n.terms
    return a, (top.k if top.of_dual else None), b


def certified_value(n, x):
    """Norm of an F-variant: proved from above by a split and from below by a functional."""
    a, k, b = f_parts(n)
    k = k or min(x.shape)
    t = float(n(x))
    s = sigma(x)
    if t == 0:
        assert not x.any()
        return 0.0
    # Distance of sigma to the ball a t Fanion-k, by an independent root search over theta.
    cap = a * t

    def inside(theta):
        return np.clip(s - theta, 0, cap)

    theta = 0.0
    if inside(0.0).sum() > k * cap:
        theta = scipy.optimize.brentq(lambda v: inside(v).sum() - k * cap, 0, s[0], xtol=1e-15)
    rest = s - inside(theta)
    assert np.linalg.norm(rest) <= b * t * (1 + 1e-9) + 1e-15 * s[0]  # x is in t times the ball
    # A functional of dual norm 1 that attains t: no smaller t will do.
    functional = rest / (a * rest[np.argsort(-rest)][:k].sum() + b * np.linalg.norm(rest))
    assert functional @ s >= t * (1 - 1e-9)
    return t


def value(atom, x):
    return atom.value(x) if atom.value else certified_value(atom.make(), x)


def test_every_norm_has_a_row():
    makes = {name for name in norms.__all__ if _returns_a_norm(getattr(norms, name))}
    rows = {name.partition("(")[0] for name in ATOMS | WITHOUT_VALUE if "*" not in name}
    assert makes == rows | ELSEWHERE  # else: a row in ATOMS, with a reference


def _returns_a_norm(f):
    return inspect.isfunction(f) and inspect.signature(f).return_annotation == "MatrixNorm"


# -- what every norm promises ------------------------------------------------------------------


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("atom", "shape"), cases(ATOMS))
def test_a_maximiser_attains_the_dual_norm(atom, shape, kind):
    n, g = atom.make(), sample(shape, kind)
    before = g.copy()
    t = n.lmo(g)
    dual = each(atom.dual, g)
    assert t.dtype == g.dtype
    np.testing.assert_allclose(each(lambda x: value(atom, x), t), 1.0 * (kind != "zero"), 1e-9)
    np.testing.assert_allclose(pair(g, t), dual, 1e-9)
    np.testing.assert_allclose(n.dual_norm(g), dual, 1e-9)
    np.testing.assert_allclose(n.dual()(g), dual, 1e-9)
    np.testing.assert_allclose(n(g), each(lambda x: value(atom, x), g), 1e-9)
    np.testing.assert_allclose(n.sharp(g), dual[..., None, None] * t, 1e-9, 1e-12)
    np.testing.assert_allclose(n.dual().dual()(g), n(g), 1e-12)
    np.testing.assert_allclose(norms.duality_gap(n, g, 7 * t), 0, atol=1e-9)
    np.testing.assert_array_equal(g, before)
    if kind == "zero":
        assert not t.any()


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("atom", "shape"), cases(ATOMS, [(5, 5), (4, 7), (2, 5, 3)]))
def test_a_maximiser_of_the_dual_attains_the_norm(atom, shape, kind):
    n, g = atom.make(), sample(shape, kind)
    t = n.dual().lmo(g)
    np.testing.assert_allclose(each(atom.dual, t), 1.0 * (kind != "zero"), 1e-9)
    np.testing.assert_allclose(pair(g, t), n(g), 1e-9)
    np.testing.assert_allclose(n.dual().dual_norm(g), n(g), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("atom", "shape"), cases(WITHOUT_VALUE))
def test_a_sum_without_a_value_has_dual_norm_and_maximiser(atom, shape, kind):
    n, g = atom.make(), sample(shape, kind)
    t = n.lmo(g)
    np.testing.assert_allclose(pair(g, t), each(atom.dual, g), 1e-9)
    np.testing.assert_allclose(n.dual_norm(g), each(atom.dual, g), 1e-9)
    np.testing.assert_allclose(n.sharp(g), n.dual_norm(g)[..., None, None] * t, 1e-9, 1e-12)
    # In the ball: no functional of dual norm 1 exceeds 1 on it.
    for seed in range(20):
        y = sample(shape, "real", seed + 1)
        assert np.all(pair(y, t) <= each(atom.dual, y) * (1 + 1e-12))
    with pytest.raises(NotImplementedError, match="use dual_norm, lmo or sharp"):
        n(g)


@pytest.mark.parametrize(("atom", "shape"), cases(ATOMS | WITHOUT_VALUE, [(4, 3)]))
def test_random_points_of_the_ball_never_win(atom, shape):
    n, rng = atom.make(), np.random.default_rng(1)
    g = rng.standard_normal(shape)
    best = pair(g, n.lmo(g))
    if atom in WITHOUT_VALUE.values():
        (w, part), (v, _) = n.terms
        for t in rng.standard_normal((200, *shape)):
            assert pair(g, w * t / part(t) + v * rng.uniform(-1, 1, shape)) <= best
        return
    for t in rng.standard_normal((200 if atom.value else 20, *shape)) ** 3:
        assert pair(g, t / float(n(t))) <= best * (1 + 1e-12)


@pytest.mark.parametrize(("atom", "shape"), cases(ATOMS, [(2, 3)]))
def test_a_search_finds_the_dual_norm(atom, shape):
    if atom.value is None:
        pytest.skip("its value is certified above")
    rng = np.random.default_rng(2)
    g = rng.standard_normal(shape)

    def loss(t):
        t = t.reshape(shape)
        return -np.sum(g * t) / max(atom.value(t), 1e-300)

    search = scipy.optimize.differential_evolution
    # Before SciPy 1.15 the argument had another name.
    name = "rng" if "rng" in inspect.signature(search).parameters else "seed"
    found = -search(loss, [(-1, 1)] * g.size, maxiter=60, popsize=8, **{name: 0}).fun
    dual = float(atom.make().dual_norm(g))
    # A short random search comes near the maximum, and never above it.
    assert 0.9 * dual <= found <= dual * (1 + 1e-9)


@pytest.mark.parametrize(("atom", "shape"), cases(ATOMS | WITHOUT_VALUE, [(6, 4)]))
def test_maximisers_turn_with_the_matrix(atom, shape):
    n, g = atom.make(), sample(shape)
    if atom.unitary:
        p, q = orthonormal(6, 6, seed=1), orthonormal(4, 4, seed=2)
    else:
        rng = np.random.default_rng(3)
        p, q = (np.eye(d)[rng.permutation(d)] * rng.choice([-1, 1], d) for d in shape)
    np.testing.assert_allclose(n.lmo(p @ g @ q), p @ n.lmo(g) @ q, atol=1e-9)


@pytest.mark.parametrize("scale", [3.7, 1e300, 1e-300])
@pytest.mark.parametrize(("atom", "shape"), cases(ATOMS | WITHOUT_VALUE, [(6, 4)]))
def test_the_scale_of_the_input_cancels(atom, shape, scale):
    n, g = atom.make(), sample(shape)
    np.testing.assert_allclose(n.lmo(scale * g), n.lmo(g), 1e-9, 1e-12)
    np.testing.assert_allclose(n.dual_norm(scale * g) / scale, n.dual_norm(g), 1e-12)
    np.testing.assert_allclose(n.sharp(scale * g) / scale, n.sharp(g), 1e-9, 1e-12)
    if atom.value:
        np.testing.assert_allclose(n(scale * g) / scale, n(g), 1e-12)


@pytest.mark.parametrize("alpha", [1e-9, 1 - 1e-6, 1 - 1e-12])
@pytest.mark.parametrize("k", [None, 2])
def test_extreme_mixtures(k, alpha):
    n = norms.f_fanion(k, alpha)
    for spectrum in ([1, 1, 1], [1, 1 - 5e-9, 0.2], [1, 0.5, 0.1], [1, 0, 0], [0, 0, 0]):
        x = np.diag(np.array(spectrum, "f8"))
        if alpha <= 1 - 1e-6:  # beyond, the certificate is lost in rounding
            certified_value(n, x)
        for t, size in ((n.lmo(x), n), (n.dual().lmo(x), n.dual())):
            np.testing.assert_allclose(size(t), float(x.any()), 1e-9)


@pytest.mark.parametrize("k", [1, 2])
def test_a_stack_of_f_fanions_is_one_root_search(k, monkeypatch):
    n, calls = norms.f_fanion(k, 0.3), []
    stack = np.random.default_rng(k).standard_normal((3, 40, 5, 4))
    stack[0, 0] = 0
    stack[1] *= 1e-200
    one_by_one = np.array([n(x) for x in stack.reshape(-1, 5, 4)]).reshape(3, 40)
    project = sums.capped_simplex
    monkeypatch.setattr(sums, "capped_simplex", lambda *how: calls.append(0) or project(*how))
    np.testing.assert_allclose(n(stack), one_by_one, 1e-14)
    assert len(calls) <= 2 * sums.MOST_STEPS + 3  # whatever the number of matrices


def test_small_columns_do_not_underflow():
    g = np.array([[1.0, 3e-200], [0.0, 4e-200]])
    np.testing.assert_allclose(norms.induced(1, 2).lmo(g), [[1, 0.6], [0, 0.8]], 1e-12)
    np.testing.assert_allclose(norms.induced(1, 3)(g[:, 1:]) / 1e-200, 91 ** (1 / 3), 1e-12)


# -- conventions -------------------------------------------------------------------------------


def test_noise_is_no_rank():
    g = with_singular_values([3.0, 2.0, 0.0, 0.0], 6, 4)
    exact = with_singular_values([1.0, 1.0, 0.0, 0.0], 6, 4)
    for n in (norms.spectral(), norms.fanion(3), norms.schatten(1e9), norms.spectral(polar="qdwh")):
        np.testing.assert_allclose(n.lmo(g), exact, atol=1e-7)
    np.testing.assert_allclose(norms.f_muon(1).lmo(g), exact, atol=1e-12)
    np.testing.assert_allclose(norms.ky_fan(2).lmo(np.eye(4)), np.eye(4) / 2, atol=1e-12)


def test_ties_take_the_first():
    g = np.array([[0.0, -2.0], [2.0, 2.0]])
    assert norms.lp(1).lmo(g).tolist() == [[0.0, -1.0], [0.0, 0.0]]
    assert norms.induced(1, 1).lmo(g).tolist() == [[0.0, -1.0], [1.0, 0.0]]
    assert norms.induced(INF, INF).lmo(g).tolist() == [[0.0, -1.0], [1.0, 0.0]]
    assert norms.induced(1, 2).dual().lmo(np.eye(2)).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    g = np.diag([2.0, 1.0, 1.0])  # sigma_1 equals the sum over k: the rank-one maximiser
    assert np.linalg.matrix_rank(norms.ky_fan(2).lmo(g)) == 1


def test_equal_norms_are_equal():
    assert norms.schatten(1) == norms.ky_fan_dual(1, 7) == norms.neon() == norms.nuclear()
    assert norms.schatten(2) == norms.lp(2) == norms.frobenius() == norms.frobenius().dual()
    assert norms.spectral() == norms.induced(2, 2) == norms.ky_fan(1) == norms.ky_fan(3, INF)
    assert norms.ky_fan(None, 3) == norms.schatten(3) == norms.ky_fan_dual(None, 1.5)
    assert norms.induced(1, INF) == norms.lp(INF) == norms.lp(1).dual()
    assert norms.fanion(3) == norms.ky_fan_dual(3) == norms.ky_fan(3).dual()
    assert norms.fanion(None) == norms.spectral() == norms.f_muon(1.0) == norms.nuclear().dual()
    assert norms.f_fanion(3, 0) == norms.frobenius()
    assert norms.s_muon(0, 0.5) == 2 * norms.lp(INF)
    assert norms.f_neon(0.5) == norms.f_fanion(1, 0.5)
    assert 2 * (3 * norms.spectral()) == 6 * norms.spectral()
    assert 1 * norms.spectral() == norms.spectral()
    assert norms.minkowski_sum([(1, 2 * norms.lp(1)), (0, norms.lp(3))]) == 2 * norms.lp(1)
    twice = norms.minkowski_sum([(0.5, norms.f_muon(0.5)), (0.25, norms.spectral())])
    assert twice.terms == ((0.5, norms.spectral()), (0.25, norms.frobenius()))


@pytest.mark.parametrize("name", ["spectral", "fanion(2)", "lp(1)", "f_muon", "induced(1, 2)"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0, 3, 2)])
def test_empty(name, shape):
    n, g = ATOMS[name].make(), np.zeros(shape)
    assert n.lmo(g).shape == n.sharp(g).shape == n.project(g).shape == shape
    assert n(g).shape == n.dual_norm(g).shape == shape[:-2]
    assert not np.any(n(g))


def test_names():
    for text in ("spectral()", "fanion(2)", "ky_fan(3, 1.5)", "lp(inf)", "induced(1, 3)"):
        assert repr(eval(text, vars(norms) | {"inf": INF})) == text
    assert repr(norms.induced(3, INF).dual()) == "induced(3, inf).dual()"
    assert repr(norms.induced(1, 3).dual()) == "induced(1, 3).dual()"
    assert repr(2 * norms.schatten(3)) == "2.0 * schatten(3)"


# -- projections -------------------------------------------------------------------------------

PROJECTED = {
    **{k: ATOMS[k] for k in ("spectral", "nuclear", "frobenius", "fanion(2)", "2.5 * spectral")},
    **{k: ATOMS[k] for k in ("lp(1)", "lp(inf)", "induced(1, 1)", "induced(1, 2)")},
    **{k: ATOMS[k] for k in ("induced(2, inf)", "induced(inf, inf)")},
    "induced(1, 2).dual()": Atom(
        lambda: norms.induced(1, 2).dual(), along(2, 1, 0), along(2, INF, 0), unitary=False
    ),
    "induced(2, inf).dual()": Atom(
        lambda: norms.induced(2, INF).dual(), along(2, 1, 1), along(2, INF, 1), unitary=False
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("atom", "shape"), cases(PROJECTED, [(5, 4), (3, 6), (2, 4, 3)]))
def test_projections(atom, shape, kind):
    n, x = atom.make(), 0.7 * sample(shape, kind)
    p = n.project(x)
    size = each(atom.value, p)
    assert np.all(size <= 1 + 1e-12)
    # The nearest point, and no other: x - p is normal to the ball at p.
    np.testing.assert_allclose(pair(x - p, p), each(atom.dual, x - p), 1e-9, 1e-12)
    np.testing.assert_allclose(n.project(p), p, atol=1e-12)
    inside = 0.99 * p
    np.testing.assert_array_equal(n.project(inside), inside)


@pytest.mark.parametrize("atom", PROJECTED.values(), ids=PROJECTED)
def test_projections_of_huge_and_tiny_matrices(atom):
    n, x = atom.make(), sample((5, 4))
    p = n.project(1e300 * x)
    np.testing.assert_allclose(atom.value(p), 1, 1e-9)
    # Seen from so far, the projection is the maximiser (where that is unique).
    np.testing.assert_allclose(pair(x, p), n.dual_norm(x), 1e-9)
    np.testing.assert_array_equal(n.project(1e-300 * x), 1e-300 * x)


@pytest.mark.parametrize(
    "n",
    [
        norms.schatten(3),
        norms.ky_fan(2),
        norms.ky_fan_dual(2, 2),
        norms.lp(3),
        norms.f_muon(0.5),
        norms.f_muon(0.5).dual(),
        norms.induced(1, 3),
        norms.induced(1, 1).dual(),
    ],
    ids=repr,
)
def test_projections_that_are_not_known_say_so(n):
    with pytest.raises(NotImplementedError, match="no projection in closed form"):
        n.project(np.eye(3))


# -- the spectral maximiser by any method ------------------------------------------------------


@pytest.mark.parametrize("polar", ["svd", "qdwh", "newton", "newton_schulz"])
def test_exact_methods(polar):
    n, g = norms.spectral(polar=polar), sample((6, 4))
    np.testing.assert_allclose(n.lmo(g), norms.spectral().lmo(g), atol=1e-12)
    np.testing.assert_allclose(n.sharp(g), norms.spectral().sharp(g), atol=1e-10)
    assert not n.lmo(np.zeros((3, 2))).any()


@pytest.mark.parametrize(
    "polar",
    [polarlib.polar, scipy.linalg.polar, lambda g: polarlib.polar(g).unitary],
    ids=["result", "pair", "array"],
)
def test_functions(polar):
    n, g = norms.spectral(polar=polar), sample((6, 4))
    np.testing.assert_allclose(n.lmo(g), norms.spectral().lmo(g), atol=1e-12)
    np.testing.assert_allclose(norms.duality_gap(n, g, n.lmo(g)), 0, atol=1e-12)


@pytest.mark.parametrize(
    "polar", ["polar_express", polarlib.schedule("jordan", steps=5)], ids=["name", "schedule"]
)
def test_schedules_are_orthogonalize_and_nothing_else(polar, monkeypatch):
    n = norms.spectral(polar=polar)
    g = sample((40, 30)).astype("f4")
    expected = polarlib.orthogonalize(g, schedule=polar)
    with monkeypatch.context() as patch:
        patch.setattr(np.linalg, "svd", None)
        patch.setattr(scipy.linalg, "svd", None)
        patch.setattr(NumpyOps, "svd", None)
        t = n.lmo(g)
    np.testing.assert_array_equal(t, expected)
    # Certified: the same gap from the definition.
    gap = 1 - pair(g, t) / (schatten(INF)(t) * schatten(1)(g))
    np.testing.assert_allclose(norms.duality_gap(n, g, t), gap, atol=1e-5)
    assert gap > 1e-3
    # The sharp operator takes the exact nuclear norm, and not the biased inner product.
    np.testing.assert_allclose(n.sharp(g), schatten(1)(g) * t, 1e-5)
    scaled = norms.rms_to_rms(40, 30, polar=polar)
    np.testing.assert_allclose(scaled.lmo(g), math.sqrt(4 / 3) * t, 1e-6)
    mixed = norms.f_muon(0.5, polar=polar)
    np.testing.assert_allclose(mixed.lmo(g), t / 2 + g / np.linalg.norm(g) / 2, atol=1e-5)


def test_gap_of_anything():
    n, g = norms.spectral(), sample((4, 3))
    assert norms.duality_gap(n, g, 0 * g) == 1
    assert norms.duality_gap(n, 0 * g, g) == 0
    np.testing.assert_allclose(norms.duality_gap(n, g, -n.lmo(g)), 2, 1e-12)
    np.testing.assert_allclose(norms.duality_gap(n, 1e300 * g, 1e-300 * g + 0), _gap(n, g, g), 1e-9)


def _gap(n, g, t):
    return 1 - pair(g, t) / n(t) / n.dual_norm(g)


@pytest.mark.parametrize("method", ["auto", "svd", "lanczos", "block_krylov", "randomized"])
def test_leading_triplets_by_any_method(method):
    s = 0.9 ** np.arange(40)
    g = with_singular_values(s, 60, 40)
    exact = with_singular_values((np.arange(40) < 3) * 1.0, 60, 40)
    n = norms.fanion(3, method=method)
    np.testing.assert_allclose(n.lmo(g), exact, atol=1e-4)
    np.testing.assert_allclose(norms.duality_gap(n, g, n.lmo(g)), 0, atol=1e-9)
    np.testing.assert_allclose(norms.neon(method=method).sharp(g), norms.neon().sharp(g), atol=1e-4)


def test_large_matrices_iterate(monkeypatch):
    g = sample((300, 260)) + 50 * with_singular_values(np.eye(260)[0] + 2 * np.eye(260)[1], 300)
    module = vars(unitary)
    calls = []
    inner = module["top_singular"]
    monkeypatch.setitem(vars(unitary), "svd", None)
    monkeypatch.setitem(
        module, "top_singular", lambda *a, **k: (calls.append(k), inner(*a, **k))[1]
    )
    t = norms.fanion(2).lmo(g)
    assert calls
    np.testing.assert_allclose(pair(g, t), kp_norm(g, 2, 1), 1e-9)
    np.testing.assert_allclose(sigma(t)[:3], [1, 1, 0], atol=1e-12)


# -- networks ----------------------------------------------------------------------------------


def layers():
    ws = [sample((4, 3)), sample((5, 4), seed=1), sample((2, 5), seed=2)]
    parts = [norms.rms_to_rms(4, 3), norms.spectral(), norms.induced(1, 2)]
    return parts, [0.5, 2.0, 3.0], ws


def test_modular():
    parts, scales, ws = layers()
    n = norms.modular(parts, scales)
    largest = max(
        0.5 * math.sqrt(3 / 4) * sigma(ws[0])[0],
        2 * sigma(ws[1])[0],
        3 * np.linalg.norm(ws[2], axis=0).max(),
    )
    np.testing.assert_allclose(n(ws), largest, 1e-12)
    t = n.lmo(ws)
    dual = n.dual_norm(ws)
    np.testing.assert_allclose(n(t), 1, 1e-12)
    np.testing.assert_allclose(sum(pair(*gt) for gt in zip(ws, t, strict=True)), dual, 1e-12)
    for a, b in zip(n.sharp(ws), t, strict=True):
        np.testing.assert_allclose(a, dual * b, 1e-12)
    np.testing.assert_allclose(norms.duality_gap(n, ws, t), 0, atol=1e-12)
    gap = 1 - sum(pair(*gt) for gt in zip(ws, ws, strict=True)) / n(ws) / dual
    np.testing.assert_allclose(norms.duality_gap(n, ws, ws), gap, 1e-12)
    np.testing.assert_allclose((2 * n)(ws), 2 * n(ws), 1e-12)
    assert n.dual().dual() == norms.modular([p.dual().dual() for p in parts], scales)


def test_the_dual_of_a_modular_norm_moves_one_layer():
    parts, scales, ws = layers()
    n = norms.modular(parts, scales)
    d = n.dual()
    np.testing.assert_allclose(d(ws), n.dual_norm(ws), 1e-12)
    np.testing.assert_allclose(d.dual_norm(ws), n(ws), 1e-12)
    t = d.lmo(ws)
    np.testing.assert_allclose(sum(pair(*gt) for gt in zip(ws, t, strict=True)), n(ws), 1e-12)
    np.testing.assert_allclose(d(t), 1, 1e-12)
    assert sum(bool(x.any()) for x in t) == 1
    np.testing.assert_allclose(norms.duality_gap(d, ws, t), 0, atol=1e-12)
    equal = norms.modular([norms.frobenius()] * 2).dual().lmo([np.eye(2), np.eye(2)])
    assert [bool(x.any()) for x in equal] == [True, False]
    with pytest.raises(NotImplementedError, match="no projection"):
        d.project(ws)


def test_modular_projects_each_layer_and_takes_stacks():
    parts, scales, ws = layers()
    n = norms.modular(parts, scales)
    p = n.project(ws)
    np.testing.assert_allclose(n(p), 1, 1e-12)
    stacks = [np.stack([w, 2 * w, 0 * w]) for w in ws]
    np.testing.assert_allclose(n(stacks), n(ws) * np.array([1, 2, 0]), 1e-12)
    np.testing.assert_allclose(n.sharp(stacks)[1][1], 2 * n.sharp(ws)[1], 1e-12)
    np.testing.assert_allclose(n.dual().lmo(stacks)[1][0], n.dual().lmo(ws)[1], 1e-12)


def test_modular_keeps_half_precision():
    xs = [sample((4, 3)).astype("f2"), sample((3, 4)).astype("f2")]
    n = norms.modular([norms.spectral(), norms.frobenius()], [1.0, 3.0])
    assert n(xs).dtype == np.float32
    assert [x.dtype for x in n.lmo(xs) + n.sharp(xs)] == [np.float16] * 4
    expected = n([x.astype("f8") for x in xs])
    np.testing.assert_allclose(n(xs), expected, 1e-6)


def test_masses_and_sensitivities():
    a, b, c = (
        norms.layer(norms.spectral(), mass=m, sensitivity=s)
        for m, s in ((1.0, 2.0), (3.0, 0.5), (4.0, 5.0))
    )
    pair_of = norms.compose(a, b)
    # M1 after M0: scales (m / m0) c1 and m / m1.
    assert pair_of.scales == (4 / 1 * 0.5, 4 / 3)
    assert (pair_of.mass, pair_of.sensitivity) == (4, 1)
    left, right = norms.compose(pair_of, c), norms.compose(a, norms.compose(b, c))
    np.testing.assert_allclose(left.scales, right.scales, 1e-14)
    np.testing.assert_allclose(left.scales, norms.compose(a, b, c).scales, 1e-14)
    assert left[2:] == right[2:]
    both = norms.join(a, b)
    assert (both.scales, both.mass, both.sensitivity) == ((4.0, 4 / 3), 4.0, 2.5)
    with_bond = norms.compose(a, norms.bond(10.0), b)
    assert with_bond.scales == (20.0, 4 / 3)
    assert isinstance(with_bond.norm(), norms.Norm)


def test_kernels():
    w = sample((2, 8, 3, 5, 5))
    n = norms.convolution(norms.rms_to_rms(8, 75))
    x = w.reshape(2, 8, 75)
    np.testing.assert_array_equal(norms.kernel_to_matrix(w), x)
    np.testing.assert_array_equal(norms.matrix_to_kernel(x, w.shape), w)
    t = n.lmo(w)
    np.testing.assert_allclose(t.reshape(x.shape), norms.rms_to_rms(8, 75).lmo(x))
    np.testing.assert_allclose(np.sum(t * w, axis=(1, 2, 3, 4)), n.dual_norm(w), 1e-12)
    np.testing.assert_allclose(n.sharp(w), n.dual_norm(w)[:, None, None, None, None] * t, 1e-9)
    np.testing.assert_allclose(n.project(w), n.dual().dual().project(w))
    np.testing.assert_allclose((2 * n)(w), 2 * n(w))
    np.testing.assert_allclose(norms.duality_gap(n, w, t), 0, atol=1e-12)
    m = norms.modular([n, norms.frobenius()])
    ws = [w[0], sample((4, 8))]
    np.testing.assert_allclose(m.sharp(ws)[0], m.dual_norm(ws) * n.lmo(w[0]), 1e-12)


# -- scales ------------------------------------------------------------------------------------


def test_update_scales():
    assert norms.update_scale(16, 4, "rms_to_rms") == 2
    assert norms.update_scale(4, 16, "rms_to_rms") == 0.5
    assert norms.update_scale(16, 4, "jordan") == 2
    assert norms.update_scale(4, 16, "jordan") == 1
    np.testing.assert_allclose(norms.update_scale(4, 16, "moonlight"), 0.8)
    q = orthonormal(64, 16)
    moonlight = norms.update_scale(64, 16, "moonlight") * q
    np.testing.assert_allclose(np.sqrt(np.mean(moonlight**2)), 0.2)
    np.testing.assert_allclose(
        (norms.update_scale(64, 16, "rms_to_rms") * norms.rms_to_rms(64, 16))(q), 1
    )
    np.testing.assert_allclose(norms.spectral_radii([3, 12, 12, 3]), [2, 1, 0.5])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_mup_moves_features_at_every_width(optimizer):
    # One step of a net x -> W3 relu(W2 relu(W1 x)): the change of the output neither vanishes nor
    # explodes from width 256 to 2048, whatever the multiplier.
    changes = []
    for p in (256, 2048):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((8, 1)), 1.0
        shapes = {"input": (p, 8), "hidden": (p, p), "output": (1, p)}
        abc = {name: norms.mup(name, optimizer) for name in shapes}
        w = {k: rng.standard_normal(s) * p ** -abc[k].b for k, s in shapes.items()}

        def forward(w, x=x):
            h1 = np.maximum(w["input"] @ x, 0)
            h2 = np.maximum(w["hidden"] @ h1, 0)
            return h1, h2, float((w["output"] @ h2)[0, 0])

        h1, h2, f = forward(w)
        d2 = w["output"].T * (h2 > 0) * (f - y)
        d1 = w["hidden"].T @ d2 * (h1 > 0)
        grads = {"output": h2.T * (f - y), "hidden": d2 @ h1.T, "input": d1 @ x.T}
        if optimizer == "adam":
            grads = {k: np.sign(g) for k, g in grads.items()}
        rate = 0.01
        new = {k: w[k] - rate * p ** -abc[k].c * grads[k] for k in w}
        k1, k2, f2 = forward(new)
        changes.append(
            [np.sqrt(np.mean((a - b) ** 2)) for a, b in ((h1, k1), (h2, k2))] + [abs(f2 - f)]
        )
    ratio = np.array(changes[1]) / np.array(changes[0])
    assert np.all((ratio > 0.4) & (ratio < 2)), ratio


def test_mup_moves_to_other_multipliers():
    # Without multipliers' help: the table of Yang and Hu, where only they differ.
    table = {"input": -0.5, "hidden": 0.0, "output": 0.5}
    for layer, a in table.items():
        assert norms.mup(layer, "sgd", a=a) == (a, 0.5, 0)
    assert norms.mup("output", "adam", a=1) == (1, 0, 0)


# -- errors ------------------------------------------------------------------------------------

EYE = np.eye(3)


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: norms.ky_fan(0), ValueError, "k must be an integer of at least 1, got 0"),
        (lambda: norms.fanion(1.5), ValueError, "k must be an integer of at least 1, got 1.5"),
        (lambda: norms.fanion(True), ValueError, "got True"),
        (lambda: norms.fanion(4).lmo(EYE), ValueError, r"k = 4, more than min\(m, n\) = 3"),
        (lambda: norms.ky_fan(4)(EYE), ValueError, "k = 4"),
        (lambda: norms.f_fanion(4, 0.5).lmo(EYE), ValueError, "k = 4"),
        (lambda: (2 * norms.fanion(4)).lmo(EYE), ValueError, "k = 4"),
        (lambda: norms.f_fanion(2, 1.5), ValueError, "alpha must be a number from 0 to 1, got 1.5"),
        (lambda: norms.s_muon(-0.1, 1), ValueError, "alpha must be a number from 0 to 1, got -0.1"),
        (lambda: norms.f_muon(math.nan), ValueError, "alpha must be a number from 0 to 1, got nan"),
        (lambda: norms.s_muon(0.5, 0), ValueError, "eta must be a positive number.* got 0"),
        (lambda: norms.schatten(0.5), ValueError, "p must be a number from 1 to infinity, got 0.5"),
        (lambda: norms.lp(0.99), ValueError, "p must be a number from 1 to infinity, got 0.99"),
        (lambda: norms.ky_fan(2, p=0), ValueError, "p must be a number from 1"),
        (lambda: norms.lp("2"), ValueError, "p must be a number from 1 to infinity, got '2'"),
        (lambda: norms.lp(math.nan), ValueError, "got nan"),
        (lambda: norms.induced(INF, 1), ValueError, "from linf to l1 is NP-hard"),
        (lambda: norms.induced(INF, 2), ValueError, "NP-hard"),
        (lambda: norms.induced(2, 1), ValueError, "from l2 to l1 is NP-hard"),
        (lambda: norms.induced(3, 3), ValueError, "NP-hard"),
        (lambda: norms.induced(2, 4), ValueError, "no known closed form"),
        (lambda: norms.induced(0.5, 2), ValueError, "a must be a number from 1"),
        (lambda: norms.spectral(polar="qdw"), ValueError, "did you mean 'qdwh'"),
        (lambda: norms.spectral(polar=3), TypeError, "polar must be a function"),
        (lambda: norms.spectral(polar=lambda g: g[0]).lmo(EYE), ValueError, r"shape \(3, 3\)"),
        (lambda: norms.spectral(polar=lambda g: None).lmo([[2.0]]), ValueError, r"\(1, 1\), got"),
        (lambda: norms.fanion(2, polar="qdwh"), ValueError, "k=None"),
        (lambda: norms.nuclear(method="power"), ValueError, "unknown method 'power'"),
        (lambda: -1 * norms.spectral(), ValueError, "positive number.* got -1"),
        (lambda: 0 * norms.lp(1), ValueError, "positive number.* got 0"),
        (lambda: 1e300 * norms.lp(1), ValueError, "from 1.18e-38 to 8.51e.37, got 1e.300"),
        (lambda: INF * norms.lp(1), ValueError, "got inf"),
        (lambda: "a" * norms.lp(1), ValueError, "must be a positive number"),
        (lambda: norms.rms_to_rms(0, 3), ValueError, "fan_out must be an integer of at least 1"),
        (lambda: norms.rms_to_rms(3, 4).lmo(np.ones((5, 3))), ValueError, r"3 x 4.*\(5, 3\)"),
        (lambda: norms.minkowski_sum([]), ValueError, "pairs of a weight and a norm"),
        (lambda: norms.minkowski_sum([(0, norms.lp(1))]), ValueError, "positive weight"),
        (lambda: norms.minkowski_sum([(-1, norms.lp(1))]), ValueError, "a weight must be"),
        (lambda: norms.minkowski_sum([(INF, norms.lp(1))]), ValueError, "a weight must be.*inf"),
        (lambda: norms.minkowski_sum([(1, 3)]), TypeError, "norm of matrices"),
        (lambda: norms.modular([]), ValueError, "at least one norm"),
        (lambda: norms.modular([norms.lp(1)], [1, 2]), ValueError, "scales must be a list of 1 "),
        (lambda: norms.modular([norms.lp(1)], [0]), ValueError, "a scale must be a positive"),
        (lambda: norms.modular([3]), TypeError, "got 3"),
        (lambda: norms.modular([norms.lp(1)])(EYE), TypeError, "list of 1 arrays"),
        (lambda: norms.modular([norms.lp(1)]).lmo([EYE, EYE]), ValueError, "1 layers.*got 2"),
        (lambda: norms.modular([norms.fanion(4)]).lmo([EYE]), ValueError, "k = 4"),
        (lambda: norms.modular([norms.rms_to_rms(2, 3)])([EYE]), ValueError, "2 x 3"),
        (lambda: norms.layer(norms.lp(1), mass=0), ValueError, "mass must be a positive"),
        (lambda: norms.bond(-1), ValueError, "sensitivity must be a positive"),
        (lambda: norms.compose(), ValueError, "at least one"),
        (lambda: norms.compose(norms.lp(1)), TypeError, "must be a Module"),
        (lambda: norms.convolution(3), TypeError, "norm of matrices"),
        (lambda: norms.convolution(norms.lp(1)).lmo(EYE), ValueError, "4 dimensions"),
        (lambda: norms.matrix_to_kernel(EYE, (2, 2)), ValueError, "as many entries as x"),
        (lambda: norms.update_scale(0, 1, "jordan"), ValueError, "m must be an integer"),
        (lambda: norms.update_scale(1, 1, "spectral"), ValueError, "rule must be .*'spectral'"),
        (lambda: norms.spectral_radii([3]), ValueError, "two layers or more"),
        (lambda: norms.mup("head"), ValueError, "layer must be .* got 'head'"),
        (lambda: norms.mup("input", "muon"), ValueError, "optimizer must be 'sgd' or 'adam'"),
        (lambda: norms.lp(1)(np.ones(3)), ValueError, r"x must be a matrix.*\(3,\)"),
        (lambda: norms.lp(1).lmo("a"), TypeError, "g must be an array of numbers"),
        (lambda: norms.lp(1).lmo([[1, math.nan]]), ValueError, r"g contains NaN.*\(0, 1\)"),
        (lambda: norms.spectral()([[1, INF]]), ValueError, "x contains NaN or infinity"),
        (lambda: norms.duality_gap(3, EYE, EYE), TypeError, "n must be a norm"),
        (lambda: norms.duality_gap(norms.lp(1), EYE, EYE[:2]), ValueError, "shape of g"),
        (
            lambda: norms.minkowski_sum([(1, norms.lp(1)), (1, norms.lp(3))])(EYE),
            NotImplementedError,
            r"lp\(1\) \+ lp\(3\) has no closed form",
        ),
        (lambda: norms.s_muon(0.5, 1).dual().lmo(EYE), NotImplementedError, "no closed form"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(call, kind, match):
    with pytest.raises(kind, match=match):
        call()


# -- array libraries ---------------------------------------------------------------------------

GRID = (
    "spectral", "nuclear", "frobenius", "schatten(3)", "ky_fan(2)", "ky_fan(2, 2)", "fanion(2)",
    "lp(1)", "lp(1.5)", "lp(inf)", "induced(1, 1)", "induced(2, inf)", "f_muon", "f_fanion(2)",
)  # fmt: skip
ALL = ATOMS | PROJECTED
# JAX compiles each for seconds: one of a kind.
COMPILED = ("spectral", "ky_fan(2, 2)", "induced(1, 1)", "f_muon")


def library_cases():
    for lib in LIBRARIES:
        for name in GRID:
            for dtype in ("float64", "float32", "complex128"):
                if lib != "jax" or (name in COMPILED and dtype == "float32"):
                    yield lib, name, dtype


@pytest.mark.parametrize(("lib", "name", "dtype"), list(library_cases()))
def test_libraries_agree(lib, name, dtype):
    lib, n = library(lib), ALL[name].make()
    a = sample((2, 5, 3), "complex" if dtype == "complex128" else "real").astype(dtype)
    x = lib.asarray(a)
    rtol = 1e-4 if dtype == "float32" else 1e-9
    for f in (n, n.dual_norm, n.lmo, n.sharp) + ((n.project,) if name in PROJECTED else ()):
        y = f(x)
        expected = f(a.astype("c16" if dtype == "complex128" else "f8"))
        assert type(y) is type(x)
        assert lib.device(y) == lib.device(x)
        wanted = dtype if y.ndim == 3 else dtype.replace("complex128", "float64")
        assert lib.dtype_name(y) == wanted
        np.testing.assert_allclose(lib.to_numpy(y), expected, rtol, rtol)
    np.testing.assert_array_equal(lib.to_numpy(x), a)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["spectral", "fanion(2)", "lp(1.5)", "f_muon"])
def test_half_precision_is_computed_in_single(lib, name, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    if lib.name == "jax" and (name, dtype) != ("lp(1.5)", "bfloat16"):
        pytest.skip("compiles for seconds")
    n = ATOMS[name].make()
    x = lib.asarray(sample((6, 4)), dtype)
    a = lib.to_numpy(x)
    eps = 2.0**-7 if dtype == "bfloat16" else 2.0**-10
    for f in (n, n.dual_norm, n.lmo, n.sharp):
        y = f(x)
        assert lib.dtype_name(y) == dtype
        np.testing.assert_allclose(lib.to_numpy(y), f(a), eps, eps * 1e-2)


def test_half_precision_overflows_to_infinity():
    g = np.full((64, 64), 3e4, dtype="f2")
    assert norms.lp(1)(g) == INF
    assert norms.lp(INF).sharp(g)[0, 0] == INF
    np.testing.assert_array_equal(norms.lp(INF).lmo(g), np.ones((64, 64)))


@pytest.mark.parametrize("name", COMPILED)
def test_jax_traces_and_differentiates(name):
    jnp = library("jax").xp
    import jax

    n, g = ATOMS[name].make(), sample((4, 3))
    value, t = jax.jit(lambda x: (n(x), n.lmo(x)))(jnp.asarray(g))
    np.testing.assert_allclose(value, n(g), 1e-9)
    np.testing.assert_allclose(t, n.lmo(g), 1e-9, 1e-12)
    # The gradient of the dual norm is the maximiser.
    np.testing.assert_allclose(jax.grad(n.dual_norm)(jnp.asarray(g)), n.lmo(g), 1e-7, 1e-9)


@pytest.mark.parametrize("name", [n for n in GRID if n != "lp(1)"])
def test_torch_differentiates(name, torch):
    n, g = ATOMS[name].make(), torch.tensor(sample((4, 3)), requires_grad=True)
    n.dual_norm(g).backward()
    np.testing.assert_allclose(g.grad.numpy(), n.lmo(g).detach().numpy(), 1e-7, 1e-9)


def test_on_a_device_a_bad_matrix_is_nan():
    jnp = library("jax").xp
    a = np.stack([np.eye(3), np.diag([1.0, math.nan, 1.0]), np.diag([INF, 1.0, 1.0])])
    for n in (norms.lp(INF), norms.fanion(2)):
        for f in (n, n.lmo):
            y = np.asarray(f(jnp.asarray(a)))
            np.testing.assert_allclose(y[0], f(a[0]))
            assert np.isnan(y[1:]).all()


@pytest.mark.parametrize("name", [*GRID, "induced(1, 2).dual()"])
def test_cupy_is_not_asked(name):
    n, g = ALL[name].make(), sample((2, 5, 3))
    reads = name in ("f_fanion(2)",)
    with cupy_standin.installed() as cupy:
        x = cupy.asarray(g)
        with cupy_standin.no_sync():
            results = [(f, f(x)) for f in (n.dual_norm, n.lmo, n.sharp)]
            if not reads:
                results.append((n, n(x)))
            if name in PROJECTED:
                results.append((n.project, n.project(x)))
        for f, y in results:
            assert isinstance(y, cupy.ndarray)
            np.testing.assert_allclose(y.get(), f(g), 1e-9, 1e-12)
        if reads:
            np.testing.assert_allclose(n(x).get(), n(g), 1e-9)
