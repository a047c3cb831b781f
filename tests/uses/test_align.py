"""Alignment of clouds of points against references in other arithmetic, and its derivatives."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
from conftest import LIBRARIES, Library, library
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from standin import cupy_standin

from polarlib import Alignment, align
from polarlib.uses import aligning

FIELDS = ("rotation", "scale", "translation", "singular_values", "rmsd", "unique")
EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
OPTIONS = [
    {"scale": scale, "translation": translation, "reflection": reflection}
    for scale, translation, reflection in itertools.product((False, True), repeat=3)
]
# torch's own, where forward derivatives are first asked for.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def clouds(*shape: int, noise: float = 0.3, mirror: bool = False, seed: int = 0):
    """Return points, and their images under a similarity with random errors."""
    a, d = gaussian(*shape, seed=seed), shape[-1]
    q = np.linalg.qr(gaussian(*shape[:-2], d, d, seed=seed + 1))[0]
    q[..., 0] *= (np.linalg.det(q) * (-1 if mirror else 1))[..., None]
    t = gaussian(*shape[:-2], 1, d, seed=seed + 2)
    return a, 1.7 * a @ q + t + noise * gaussian(*shape, seed=seed + 3)


def exact(a, b, w=None, *, scale=False, translation=True, reflection=False):
    """All fields but `unique`, and the covariance, at 60 digits, rounded once."""
    with mpmath.workdps(60):
        n, d = a.shape
        w = [mpmath.mpf(1)] * n if w is None else [mpmath.mpf(float(x)) for x in w]
        total = mpmath.fsum(w)

        def centred(x):
            x = mpmath.matrix(x.tolist())
            mean = mpmath.matrix(1, d)
            for j in range(d):
                if translation:
                    mean[0, j] = mpmath.fsum(w[i] * x[i, j] for i in range(n)) / total
            return mean, mpmath.matrix([[x[i, j] - mean[0, j] for j in range(d)] for i in range(n)])

        (ma, x), (mb, y) = centred(a), centred(b)
        weights = mpmath.diag(w)
        c = x.T * weights * y
        u, s, vt = mpmath.svd_r(c)
        if not reflection and mpmath.det(u * vt) < 0:
            for i in range(d):
                u[i, d - 1] = -u[i, d - 1]
        r = u * vt
        size = mpmath.mpf(1)
        if scale:
            best = sum((r.T * c)[i, i] for i in range(d))
            size = max(best, 0) / sum((x.T * weights * x)[i, i] for i in range(d))
        e = size * x * r - y
        rmsd = mpmath.sqrt(sum(w[i] * e[i, j] ** 2 for i in range(n) for j in range(d)) / total)
        t = mb - size * ma * r
        as_array = lambda m: np.array(m.tolist(), dtype=float)  # noqa: E731
        values = np.array([float(v) for v in s])
        return as_array(r), float(size), as_array(t)[0], values, float(rmsd)


def fields(found: Alignment, lib: Library | None = None) -> list[np.ndarray]:
    values = (getattr(found, name) for name in FIELDS)
    return [np.asarray(v if lib is None else lib.to_numpy(v)) for v in values]


def residual(found: Alignment, a, b, w=None):
    """The root mean square of what is left, by the fields alone."""
    e = found.scale[..., None, None] * (a @ found.rotation) + found.translation[..., None, :] - b
    w = np.ones(a.shape[:-1]) if w is None else w
    return np.sqrt(np.sum(w * np.sum(e**2, -1), -1) / np.sum(w, -1))


def is_proper(r: np.ndarray, atol: float = 1e-14) -> None:
    d = r.shape[-1]
    gram = np.swapaxes(r, -1, -2) @ r
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(d), gram.shape), atol=atol)
    np.testing.assert_allclose(np.linalg.det(r), 1.0, atol=10 * atol)


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.thinned(2)
def test_against_sixty_digits(d, mirror, options):
    a, b = clouds(7, d, mirror=mirror, seed=d)
    for w in (None, np.random.default_rng(9).random(7)):
        found = align(a, b, weights=w, **options)
        assert bool(found.unique)
        for got, wanted in zip(fields(found), exact(a, b, w, **options), strict=False):
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=2e-14)
        np.testing.assert_allclose(found.rmsd, residual(found, a, b, w), rtol=1e-13)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_a_stack_is_its_clouds(d):
    """Long stacks go by closed forms, in pieces; the singular values of mirror images too."""
    a, b = clouds(320, 6, d, noise=0.1)
    a[1::2, :, 0] *= -1
    b[5], a[6], b[7] = 0, 1.0, b[7, :1]
    w = np.random.default_rng(1).random((320, 6))
    w[8, 1:] = 0
    for options, weights in ((OPTIONS[0], w), (OPTIONS[-2], None), (OPTIONS[-1], w)):
        whole = align(a, b, weights=weights, **options)
        for i in range(10):
            one = align(a[i], b[i], weights=None if weights is None else weights[i], **options)
            assert whole.unique[i] == one.unique
            names = FIELDS if one.unique else ("scale", "singular_values", "rmsd")
            for name in names:
                got, wanted = getattr(whole, name)[i], getattr(one, name)
                np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-13, err_msg=name)


def test_pieces_and_broadcasting(monkeypatch):
    a, b = clouds(4, 5, 6, 3)
    w = np.random.default_rng(0).random((5, 6))
    pairs = [
        (a, b, None),
        (a, b[0, 0], None),
        (a[0, 0], b, None),
        (a, b[:, :1], w),
        (a[0, 0], b, w),
        (a[:, :1], b[0], w[0]),
    ]
    for x, y, weights in pairs:
        whole = align(x, y, weights=weights, scale=True)
        assert whole.rotation.shape == (4, 5, 3, 3)
        assert [v.shape for v in fields(whole)[1:]] == [(4, 5), *[(4, 5, 3)] * 2, *[(4, 5)] * 2]
        monkeypatch.setattr(aligning, "PIECE", 60)
        pieces = align(x, y, weights=weights, scale=True)
        monkeypatch.undo()
        for got, wanted in zip(fields(pieces), fields(whole), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-13)
        wide = np.broadcast_arrays(x, y, np.ones((4, 5, 1, 1)))
        one = align(wide[0][2, 3], wide[1][2, 3], scale=True, weights=None if weights is None
                    else np.broadcast_to(weights, (4, 5, 6))[2, 3])  # fmt: skip
        np.testing.assert_allclose(whole.translation[2, 3], one.translation, rtol=1e-12)


def test_scipy_agrees():
    a, b = clouds(9, 3, seed=4)
    w = np.random.default_rng(5).random(9)
    turn, distance = Rotation.align_vectors(b, a, weights=w)
    found = align(a, b, weights=w, translation=False)
    np.testing.assert_allclose(found.rotation, turn.as_matrix().T, atol=1e-14)
    np.testing.assert_allclose(found.rmsd * np.sqrt(w.sum()), distance, rtol=1e-12)


@pytest.mark.parametrize("reflection", [False, True])
def test_nothing_is_nearer(reflection):
    a, b = clouds(8, 3, mirror=True, seed=6)
    w = np.random.default_rng(7).random(8)
    found = align(a, b, weights=w, scale=True, reflection=reflection)
    for seed in range(40):
        d = gaussian(3, 3, seed=seed) * (1e-3 if seed % 2 else 1.0)
        turn = np.linalg.qr(np.eye(3) + d - d.T)[0]
        turn[:, 0] *= np.linalg.det(turn)
        s = found.scale * (1 + 0.1 * gaussian(seed=seed) ** 2)
        t = found.translation + 0.1 * gaussian(3, seed=seed + 1)
        other = [found.rotation @ turn, found.scale, found.translation]
        for k, value in enumerate((None, s, t)):
            tried = [*other[:k], value, *other[k + 1 :]] if k else other
            worse = residual(Alignment(*tried, None, None, None), a, b, w)
            assert worse >= found.rmsd * (1 - 1e-14)


def test_complex_points():
    q = np.linalg.qr(gaussian(3, 3) + 1j * gaussian(3, 3, seed=1))[0]
    a = gaussian(8, 3, seed=2) + 1j * gaussian(8, 3, seed=3)
    found = align(a, 2 * a @ q + 1j, scale=True, reflection=True)
    np.testing.assert_allclose(found.rotation, q, atol=1e-14)
    np.testing.assert_allclose(found.translation, 1j * np.ones(3), atol=1e-13)
    assert found.scale == pytest.approx(2, rel=1e-14)
    assert found.rmsd < 1e-14
    assert [v.dtype.kind for v in fields(found)] == ["c", "f", "c", "f", "f", "b"]
    noisy = 2 * a @ q + gaussian(8, 3, seed=4)
    found = align(a, noisy, reflection=True, weights=np.arange(8.0))
    x, y = (z - np.arange(8) @ z / 28 for z in (a, noisy))
    s = np.linalg.svd((x.conj().T * np.arange(8)) @ y, compute_uv=False)
    np.testing.assert_allclose(found.singular_values, s, rtol=1e-13)
    square = np.arange(8) @ (np.abs(x) ** 2 + np.abs(y) ** 2).sum(1) - 2 * s.sum()
    assert found.rmsd == pytest.approx(np.sqrt(square / 28), rel=1e-13)
    with pytest.raises(TypeError, match="pass reflection=True"):
        align(a, noisy)


def test_negative_correlation_has_the_scale_zero():
    a = np.arange(5.0)[:, None]
    for x, y in ((a, -a), (np.stack([a] * 100), np.stack([-a] * 100))):
        found = align(x, y, scale=True)
        assert not np.any(found.scale)
        assert not np.any(np.signbit(found.scale))
        assert np.all(found.unique)
        np.testing.assert_allclose(found.rmsd, np.sqrt(2))
    assert align(a, -a, scale=True, reflection=True).scale == 1


# -- degenerate configurations -----------------------------------------------------------------

LINE = np.outer(np.arange(6.0), [1.0, 2.0, 2.0])
OCTAHEDRON = np.concatenate([np.eye(3), -np.eye(3)])
SQUARE = OCTAHEDRON[[0, 1, 3, 4], :2]
DEGENERATE = {
    "points on a line": (LINE, gaussian(6, 3), None),
    "targets on a line": (gaussian(6, 3), LINE, None),
    "both on lines": (LINE, LINE[:, ::-1].copy(), None),
    "coincident": (np.full((6, 3), [0.1, 0.2, 0.3]), gaussian(6, 3), None),
    "coincident in a plane": (np.full((6, 2), [0.1, 0.7]), gaussian(6, 2), None),
    "both coincident": (np.ones((4, 3)), 0.1 * np.ones((4, 3)), None),
    "two points": (gaussian(2, 3), gaussian(2, 3, seed=1), None),
    "one point": (gaussian(1, 3), gaussian(1, 3, seed=1), None),
    "weights mostly zero": (gaussian(5, 3), gaussian(5, 3, seed=1), np.array([0, 0, 2.0, 0, 1])),
    "mirrored": (OCTAHEDRON, OCTAHEDRON * [1, 1, -1], None),
    "mirrored in a plane": (SQUARE, SQUARE * [1, -1], None),
    "zero": (np.zeros((3, 3)), np.zeros((3, 3)), None),
    "four dimensions": (np.pad(LINE, [(0, 0), (0, 1)]), gaussian(6, 4), None),
    "many dimensions": (gaussian(4, 6), gaussian(4, 6, seed=1), None),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate(name):
    a, b, w = DEGENERATE[name]
    d = a.shape[1]
    _, _, _, _, least = exact(a, b, w)
    for dtype, stack in itertools.product(("float64", "float32"), (1, 80)):
        x, y = (np.stack([p.astype(dtype)] * stack) for p in (a, b))
        found = align(x, y, weights=w)
        is_proper(found.rotation.astype(float), atol=10 * EPS[dtype])
        assert not found.unique.any()
        size = np.abs(a).max() + np.abs(b).max() + 1
        np.testing.assert_allclose(found.rmsd, least, rtol=0, atol=20 * EPS[dtype] * size)
        left = residual(found, x.astype(float), y.astype(float), w)
        np.testing.assert_allclose(left, found.rmsd, rtol=0, atol=20 * EPS[dtype] * size)
        assert (np.diff(found.singular_values, axis=-1) <= 0).all()
        assert (found.singular_values >= 0).all()
        assert found.singular_values.shape == (stack, d)


def test_coincident_points_have_the_scale_one():
    for offset in (0.0, 0.1, 1e9, -1e-200):
        found = align(np.full((5, 3), offset), gaussian(5, 3), scale=True)
        assert found.scale == 1
        assert found.rmsd == pytest.approx(np.sqrt(3 * gaussian(5, 3).var(axis=0).mean()))
    # To rounding: spread up to 8 eps of the distance from the origin.
    apart = 1.0 + np.array([[0.0], [4], [0], [4]]) * 2.0**-52
    assert align(apart, gaussian(4, 1), scale=True).scale == 1
    assert align(1 + (apart - 1) * 1000, gaussian(4, 1), scale=True).scale != 1


@pytest.mark.parametrize("far", [1.0, 1e30, 1e300])
def test_points_of_weight_zero_are_left_out(far):
    a, b = clouds(8, 3)
    w = np.array([1.0, 0, 2, 3, 0, 1, 0.5, 1])
    kept = w > 0
    wanted = align(a[kept], b[kept], weights=w[kept], scale=True)
    a[~kept], b[~kept] = far, -far
    for stack in (a, b, w), (np.stack([a] * 50), b, w):
        found = align(stack[0], stack[1], weights=stack[2], scale=True)
        for got, expected in zip(fields(found), fields(wanted), strict=True):
            np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), rtol=1e-12)
    a[1, 1] = np.nan
    with pytest.raises(ValueError, match="points contains NaN"):
        align(a, b, weights=w)


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e-12, 0.02, 1.0])
def test_a_light_first_point_far_away_costs_no_digits(weight):
    """Points are not measured from it: what is subtracted first is near the others, or heavy."""
    a, b = clouds(9, 3)
    w = np.array([weight, *[1.0] * 8])
    for x in (a, b):
        x[0] = 1e3 / max(weight, 1e-20) ** 0.5
    wanted = exact(a, b, w)
    found = align(a, b, weights=w)
    np.testing.assert_allclose(found.rotation, wanted[0], atol=1e-10)
    same = np.full((9, 3), 0.1)
    same[0] = a[0] if weight == 0 else 0.1
    assert not align(same, b, weights=w).singular_values.any()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scales_and_offsets(dtype):
    large = 1e200 if dtype == "float64" else 1e30
    a, b = (x.astype(dtype) for x in clouds(9, 3))
    wanted = exact(a, b, scale=True)
    rtol = 40 * EPS[dtype]
    for one, other in itertools.product((1.0, large, 1 / large), repeat=2):
        x, y = (a * one).astype(dtype), (b * other).astype(dtype)
        found = align(x, y, scale=True)
        np.testing.assert_allclose(found.rotation, wanted[0], atol=rtol)
        with np.errstate(all="ignore"):
            ratio = np.dtype(dtype).type(wanted[1]) * np.divide(other, one, dtype=dtype)
        if np.isfinite(ratio) and ratio > 1e-30:
            np.testing.assert_allclose(found.scale, ratio, rtol=rtol)
        np.testing.assert_allclose(found.rmsd, wanted[4] * other, rtol=rtol)
        rigid = align(x, y)
        np.testing.assert_allclose(rigid.rotation, wanted[0], atol=rtol)
        assert np.isfinite(rigid.rmsd)
        assert rigid.scale == 1
    # Far from the origin, points keep what digits they have.
    x, y = ((1e3 * p + 1e8 * s).astype(dtype) for p, s in ((a, 1), (b, -1)))
    for stack in (1, 50):
        found = align(np.stack([x] * stack), np.stack([y] * stack))
        np.testing.assert_allclose(found.rotation[0], exact(x, y)[0], atol=rtol)
        np.testing.assert_allclose(found.rmsd, exact(x, y)[4], rtol=rtol)
    heavy = align(a, b, weights=np.full(9, large**1.4 if dtype == "float64" else 1e30))
    np.testing.assert_allclose(heavy.rotation, wanted[0], atol=rtol)


small = st.floats(-4, 4, allow_subnormal=False).map(lambda x: round(x, 3))


@given(
    st.lists(st.tuples(*[small] * 6), min_size=4, max_size=7),
    st.integers(0, 1000),
    st.booleans(),
)
@settings(max_examples=40)
def test_equivariance(rows, seed, stacked):
    """Moving either side moves the result; swapping sides inverts it; scales are free."""
    a, b = np.array(rows)[:, :3], np.array(rows)[:, 3:]
    if stacked:
        a, b = np.stack([a] * 30), np.stack([b] * 30)
    found = align(a, b)
    r, back = found.rotation, align(b, a)
    atol = 1e-12 * (1 + np.abs(rows).max())
    np.testing.assert_allclose(back.rmsd, found.rmsd, atol=atol)
    q, t = Rotation.random(None, seed).as_matrix(), np.array([1.0, -2.0, 0.5])
    moved, turned = align(a @ q + t, b), align(a, 3 * b @ q + t)
    np.testing.assert_allclose(moved.rmsd, found.rmsd, atol=atol)
    np.testing.assert_allclose(align(3 * a, 3 * b).rmsd, 3 * found.rmsd, atol=atol)
    np.testing.assert_allclose(back.singular_values, found.singular_values, atol=100 * atol)
    s = found.singular_values.reshape(-1, 3)[0]
    c = np.swapaxes(a - a.mean(-2, keepdims=True), -1, -2) @ b
    gap = s[1] + s[2] * np.sign(np.linalg.det(c)).reshape(-1)[0]
    if gap > 1e-3 * s[0]:
        assert np.all(found.unique)
        np.testing.assert_allclose(back.rotation, np.swapaxes(r, -1, -2), atol=1e-10)
        np.testing.assert_allclose(moved.rotation, q.T @ r, atol=1e-10)
        np.testing.assert_allclose(turned.rotation, r @ q, atol=1e-10)
    is_proper(r, atol=1e-13)


# -- libraries, shapes and wrong arguments ------------------------------------------------------


# JAX compiles each of a hundred operations here; test_jax compiles one.
EVERY = [pytest.param(name, marks=[pytest.mark.slow] * (name == "jax")) for name in LIBRARIES]


@pytest.mark.parametrize("lib", [*EVERY, "dask"], indirect=True)
def test_every_library_and_dtype(lib):
    dtypes = ("float32", "float64", "float16", "bfloat16")
    dtypes = dtypes[:1] if lib.name in ("jax", "dask") else dtypes
    shapes = [(4, 6, 3)] if lib.name in ("jax", "dask") else [(6, 3), (40, 6, 3), (2, 2, 9, 5)]
    for dtype, shape in itertools.product(dtypes, shapes):
        if not lib.has(dtype):
            continue
        x, y = (lib.asarray(p, dtype) for p in clouds(*shape))
        w = np.random.default_rng(0).random(shape[:-1]).astype(np.float32) + 0.1
        a, b = (lib.to_numpy(p).astype(float) for p in (x, y))
        found = align(x, y, weights=lib.asarray(w, "float32"), scale=True)
        wanted = align(a, b, weights=w.astype(float), scale=True)
        np.testing.assert_array_equal(lib.to_numpy(x), a)
        for name, got in zip(FIELDS, fields(found, lib), strict=True):
            value, expected = getattr(found, name), getattr(wanted, name)
            assert lib.dtype_name(value) == ("bool" if name == "unique" else dtype)
            assert lib.device(value) == lib.device(x)
            assert got.shape == expected.shape
            size = max(1.0, np.abs(expected).max())
            atol = (300 if dtype in ("float32", "float64") else 10) * EPS[dtype] * size
            np.testing.assert_allclose(got.astype(float), expected, atol=atol, err_msg=name)
        moved = found(x)
        assert lib.dtype_name(moved) == dtype
        atol = (300 if dtype in ("float32", "float64") else 30) * EPS[dtype]
        np.testing.assert_allclose(lib.to_numpy(moved), wanted(a), atol=atol)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_formats_of_eight_bits(name):
    a, b = clouds(6, 3)
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    x, y = a.astype(dtype), b.astype(dtype)
    wanted = align(x.astype(float), y.astype(float), scale=True)
    found = align(x, y, scale=True)
    for field in FIELDS[:-1]:
        value = getattr(found, field)
        assert value.dtype == dtype
        np.testing.assert_allclose(value.astype(float), getattr(wanted, field), 0.2, 0.1)


def test_torch_formats_of_eight_bits(torch):
    a, b = (torch.tensor(x).to(torch.float8_e4m3fn) for x in clouds(6, 3))
    found = align(a, b)
    assert {getattr(found, field).dtype for field in FIELDS[:-1]} == {torch.float8_e4m3fn}


def test_what_else_is_taken():
    a, b = clouds(6, 3)
    wanted = fields(align(a, b))
    views = [np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2], a.astype(">f8"), a.tolist()]
    for x in views:
        for got, expected in zip(fields(align(x, b)), wanted, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)
    whole = align([[0, 0], [1, 0], [0, 2]], [[0, 0], [0, 1], [-2, 0]], weights=[1, 2, 1])
    np.testing.assert_allclose(whole.rotation, [[0, 1], [-1, 0]], atol=1e-15)
    assert whole.rotation.dtype == np.float64
    mixed = align(a.astype("f4"), b)
    assert mixed.rmsd.dtype == np.float64
    assert align(a.astype("f4"), b.astype("f4"), weights=np.ones(6)).rmsd.dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "stack"), [((0, 5, 3), (0,)), ((2, 0, 4, 2), (2, 0)), ((4, 0), ())]
)
def test_empty(shape, stack):
    d = shape[-1]
    for w in (None, np.ones(shape[:-1])):
        for scale, reflection in itertools.product((False, True), repeat=2):
            found = align(
                np.zeros(shape), np.zeros(shape), weights=w, scale=scale, reflection=reflection
            )
            shapes = [v.shape for v in fields(found)]
            assert shapes == [(*stack, d, d), stack, (*stack, d), (*stack, d), stack, stack]
            if d == 0:
                assert found.rmsd == 0
                assert found.scale == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"points": np.zeros((0, 3)), "targets": np.zeros((0, 3))}, ValueError, "at least one"),
        ({"targets": np.zeros((6, 2))}, ValueError, "points and targets must have the same rows"),
        ({"points": np.zeros((2, 6, 3)), "targets": np.zeros((3, 6, 3))}, ValueError, "broadcast"),
        ({"weights": np.ones((2, 3, 6)), "points": np.ones((3, 2, 6, 3))}, ValueError, "broadcast"),
        ({"weights": np.ones(5)}, ValueError, r"weights must have the shape \(..., 6\)"),
        ({"weights": 1.0}, ValueError, "weights must have the shape"),
        ({"weights": np.float64(1)}, ValueError, "weights must have the shape"),
        ({"weights": [1, 1, 1, -0.5, 1, 1]}, ValueError, r"at least 0, got -0.5 at index \(3,\)"),
        ({"weights": [1, 1, 1, np.nan, 1, 1]}, ValueError, "weights contains NaN or infinity in 1"),
        ({"weights": [1, 1, 1, np.inf, 1, 1]}, ValueError, "weights contains NaN or infinity in 1"),
        ({"weights": np.zeros(6)}, ValueError, "weights must not all be zero"),
        ({"weights": np.eye(2, 6)[[0, 0]] * [[1], [0]]}, ValueError, r"cloud \(1,\)"),
        ({"weights": np.ones(6) * 1j}, TypeError, "weights must be real"),
        ({"weights": "x"}, ValueError, "weights"),
        ({"points": np.full((6, 3), np.nan)}, ValueError, "points contains NaN"),
        ({"targets": np.full((6, 3), np.inf)}, ValueError, "targets contains NaN"),
        ({"points": np.ones(3)}, ValueError, "points must be a matrix"),
        ({"scale": 1}, TypeError, "scale must be True or False"),
        ({"translation": None}, TypeError, "translation must be True or False"),
        ({"reflection": "no"}, TypeError, "reflection must be True or False"),
        ({"regularization": -1}, ValueError, "regularization must be"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error, message):
    a, b = clouds(6, 3)
    with pytest.raises(error, match=message):
        align(**({"points": a, "targets": b} | arguments))


def test_the_alignment_applies_itself():
    a, b = clouds(4, 6, 3)
    found = align(a, b, scale=True)
    other = gaussian(9, 3)
    moved = found(other)
    wanted = found.scale[:, None, None] * other @ found.rotation + found.translation[:, None]
    np.testing.assert_allclose(moved, wanted, atol=1e-14)
    np.testing.assert_allclose(found(other[:1])[:, 0], moved[:, 0], atol=1e-14)
    assert align(a[0], b[0])(other.astype("f4").tolist()).shape == (9, 3)
    for points, message in (
        (other[:, :2], "must have 3 columns"),
        (gaussian(5, 2, 3), "broadcast"),
    ):
        with pytest.raises(ValueError, match=message):
            found(points)


def test_cupy():
    a, b = clouds(5, 6, 3)
    w = np.random.default_rng(0).random((5, 6))
    with cupy_standin.installed() as cupy:
        found = align(*map(cupy.asarray, (a, b)), weights=cupy.asarray(w), scale=True)
        assert all(isinstance(getattr(found, name), cupy.ndarray) for name in FIELDS)
        got = [getattr(found, name).get() for name in FIELDS]
        moved = found(cupy.asarray(a)).get()
    wanted = align(a, b, weights=w, scale=True)
    np.testing.assert_allclose(moved, wanted(a), atol=1e-13)
    for value, expected in zip(got, fields(wanted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-13)


# -- derivatives -------------------------------------------------------------------------------


def leaves(torch, *arrays: np.ndarray, dtype: str = "float64"):
    return [torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True) for x in arrays]


def weighted(found: Alignment, names=FIELDS[:-1]):
    """One number of all fields."""
    return sum(
        (getattr(found, name) * (1.0 + k)).sum() + (getattr(found, name) ** 2).sum()
        for k, name in enumerate(names)
    )


@pytest.mark.parametrize("reflection", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 2), (6, 1)])
def test_torch_derivatives(torch, shape, reflection):
    a, b, w = leaves(torch, *clouds(*shape), 0.2 + np.random.default_rng(0).random(shape[:-1]))

    def every(*arrays):
        found = align(arrays[0], arrays[1], weights=arrays[2], scale=True, reflection=reflection)
        return tuple(getattr(found, name) for name in FIELDS[:-1])

    # Of one column R and its derivative are constant.
    check = torch.autograd.gradcheck
    assert check(every, (a, b, w), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(every, (a, b, w), fast_mode=True)
    if shape == (5, 3):
        for translation in (False, True):

            def rmsd(a, b, translation=translation):
                return align(a, b, translation=translation, reflection=reflection).rmsd

            assert check(rmsd, (a, b), fast_mode=True)


def test_torch_func(torch):
    a, b = (torch.tensor(x) for x in clouds(3, 6, 3))
    w = torch.tensor(np.random.default_rng(0).random((3, 6)))

    def loss(a, b, w):
        return weighted(align(a, b, weights=w, scale=True))

    args = (0, 1, 2)
    gradients = torch.vmap(torch.func.grad(loss, argnums=args))(a, b, w)
    x, y, z = (t.clone().requires_grad_() for t in (a, b, w))
    sum(loss(x[i], y[i], z[i]) for i in range(3)).backward()
    for got, leaf in zip(gradients, (x, y, z), strict=True):
        torch.testing.assert_close(got, leaf.grad, rtol=1e-10, atol=1e-10)
    _, along = torch.func.jvp(loss, (a[0], b[0], w[0]), (a[1], b[1], w[1]))
    inner = sum((g[0] * d[1]).sum() for g, d in zip(gradients, (a, b, w), strict=True))
    torch.testing.assert_close(along, inner)
    shared = torch.vmap(lambda a, w: align(a, b[0], weights=w).rmsd)(a, w)
    torch.testing.assert_close(shared, align(a, b[0], weights=w).rmsd)


def test_settings_of_torch(torch):
    a, b = (torch.tensor(x, dtype=torch.float32) for x in clouds(40, 6, 3))
    wanted = align(a, b, scale=True)
    x = a.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for points in (a, x):
            found = align(points, b, scale=True)
            for name in FIELDS:
                got = getattr(found, name).detach()
                torch.testing.assert_close(got, getattr(wanted, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("gap", [1e-3, 1e-7, 1e-11])
def test_scale_and_residual_near_degenerate_points(torch, gap, mirror):
    """Their derivatives do not grow with that of R, and are right to rounding."""
    basis = np.linalg.qr(gaussian(8, 4))[0]
    basis -= basis.mean(0)
    basis = np.linalg.qr(basis)[0][:, :3]
    s = np.array([1.0, 0.5, 0.5 - gap]) if mirror else np.array([1.0, gap, gap / 2])
    u, v = np.linalg.qr(gaussian(3, 3, seed=1))[0], np.linalg.qr(gaussian(3, 3, seed=2))[0]
    u[:, 2] *= np.linalg.det(u @ v) * (-1 if mirror else 1)
    data = basis @ u.T, basis * s @ v.T
    a, b = leaves(torch, *data)
    found = align(a, b, scale=True)
    assert bool(found.unique)
    found.scale.backward()
    turn = u * [1, 1, -1 if mirror else 1] @ v.T
    x, y = (p - p.mean(0) for p in data)
    spread = (x**2).sum()
    size = (x @ turn * y).sum() / spread
    wanted = (y @ turn.T - 2 * size * x) / spread
    # Near mirror images the trace itself nearly has a kink, at which R is in error.
    atol = 5e-15 / gap if mirror else 1e-14
    np.testing.assert_allclose(a.grad, wanted, rtol=0, atol=atol)
    # The residual depends on s and R, and its derivative holds them.
    a.grad = None
    align(a, b).rmsd.backward()
    e = x @ turn - y
    wanted = e @ turn.T / np.sqrt(8 * (e**2).sum())
    np.testing.assert_allclose(a.grad, wanted, rtol=0, atol=5e-15 / gap)


def test_single_precision_near_degenerate_points(torch):
    a, b = clouds(8, 3, noise=0.01)
    b = b * [1, 1e-2, 1e-2]
    grads = []
    for dtype in ("float64", "float32"):
        x, y = leaves(torch, a.astype("f4"), b.astype("f4"), dtype=dtype)
        found = align(x, y, scale=True)
        (found.scale + found.rmsd).backward()
        grads.append(x.grad.double())
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-5)


def test_derivatives_where_the_rotation_is_not_unique(torch):
    a, b = leaves(torch, LINE, gaussian(6, 3))
    names = ("rotation", "translation", "scale", "rmsd")
    for name in names:
        with pytest.raises(ValueError, match="pass regularization"):
            getattr(align(a, b, scale=True), name).sum().backward()
    stack, others = torch.stack([b, a, b]), torch.stack([a + b, b, 2 * b - a])
    for name in names:
        with pytest.raises(ValueError, match=r"\(1,\) of the stack"):
            getattr(align(stack, others, scale=True), name).sum().backward()
    for name in FIELDS[:-1]:
        a.grad = None
        getattr(align(a, b, scale=True, regularization=1e-3), name).sum().backward()
        assert torch.isfinite(a.grad).all()
        assert a.grad.abs().max() < 1e5
    # Where the value is smooth all the same, two clouds on lines, the derivative is right.
    (x,) = leaves(torch, LINE)
    other = torch.tensor(LINE @ np.diag([1, -1, 1.0]) * np.array([[1], [2], [0.5], [1], [3], [1]]))
    for name in ("scale", "rmsd"):
        x.grad = None
        getattr(align(x, other, scale=True), name).backward()
        d, t = gaussian(6, 3, seed=5), 1e-4
        ends = [
            float(getattr(align(LINE + k * t * d, other.numpy(), scale=True), name))
            for k in (1, -1)
        ]
        along = (ends[0] - ends[1]) / (2 * t)
        np.testing.assert_allclose((x.grad.numpy() * d).sum(), along, rtol=1e-4)


def test_regularised_derivatives_approach_the_others(torch):
    a, b = leaves(torch, *clouds(7, 3))
    w = torch.tensor(gaussian(3, 3, seed=8))
    (exact_one,) = torch.autograd.grad((align(a, b).rotation * w).sum(), a)
    biases = []
    for r in (1e-2, 1e-3):
        (g,) = torch.autograd.grad((align(a, b, regularization=r).rotation * w).sum(), a)
        biases.append(float((g - exact_one).norm() / exact_one.norm()))
    assert 50 < biases[0] / biases[1] < 200
    assert biases[1] < 1e-4


def test_the_residual_has_no_derivative_at_zero(torch):
    data, _ = clouds(6, 3)
    for points in (data, LINE, data[:1], data[:2]):
        q = Rotation.random(None, 1).as_matrix()
        for image in (points, points @ q + [3.0, 4, 5]):
            a, b = leaves(torch, points, image)
            w = torch.ones(len(points), dtype=torch.float64, requires_grad=True)
            align(a, b, weights=w, scale=True).rmsd.backward()
            for leaf in (a, b, w):
                assert not leaf.grad.any()


def test_singular_values_where_they_are_equal(torch):
    a, b = leaves(torch, OCTAHEDRON, OCTAHEDRON @ Rotation.random(None, 2).as_matrix())
    values = align(a, b).singular_values
    (each,) = torch.autograd.grad(values[0], a, retain_graph=True)
    assert torch.isfinite(each).all()
    assert each.norm() <= b.detach().norm()
    (whole,) = torch.autograd.grad(values.sum(), a)
    # Of the nuclear norm of A^T B at A^T B = 2 Q.
    np.testing.assert_allclose(whole, b.detach() @ align(a, b).rotation.detach().T, atol=1e-14)


def test_points_of_weight_zero_have_no_derivative(torch):
    data = clouds(6, 3)
    data[0][2] = 1e300
    w = np.array([1.0, 1, 0, 2, 1, 1])
    a, b, weights = leaves(torch, *data, w)
    weighted(align(a, b, weights=weights, scale=True)).backward()
    assert not a.grad[2].any()
    assert not b.grad[2].any()
    assert all(torch.isfinite(leaf.grad).all() for leaf in (a, b))
    kept = w > 0
    x, y = leaves(torch, data[0][kept], data[1][kept])
    weighted(align(x, y, weights=torch.tensor(w[kept]), scale=True)).backward()
    torch.testing.assert_close(a.grad[kept], x.grad, rtol=1e-12, atol=1e-12)


def test_jax():
    lib = library("jax")
    jax, jnp = pytest.importorskip("jax"), lib.xp
    a, b = (jnp.asarray(x) for x in clouds(3, 6, 3))
    w = jnp.asarray(np.random.default_rng(0).random((3, 6)))
    single = a.dtype == jnp.float32

    def both(a, b, w):
        found = align(a, b, weights=w, scale=True)
        return sum(jnp.sum(getattr(found, name) ** 2) for name in FIELDS[:-1]), found

    mapped = jax.vmap(jax.value_and_grad(both, argnums=(0, 1, 2), has_aux=True))
    step = jax.jit(mapped)
    (_, found), gradients = step(a, b, w)
    assert isinstance(found, Alignment)
    wanted = align(
        *(np.asarray(x, dtype=float) for x in (a, b)),
        weights=np.asarray(w, dtype=float),
        scale=True,
    )
    atol = 2e-4 if single else 1e-12
    for got, expected in zip(fields(found), fields(wanted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=atol, atol=atol)
    # Along a direction, by differences in double precision.
    arrays = [np.asarray(x, dtype=float) for x in (a, b, w)]
    d = [gaussian(*x.shape, seed=k) for k, x in enumerate(arrays)]
    t = 1e-5

    def at(k):
        x, y, z = (p + k * t * e for p, e in zip(arrays, d, strict=True))
        found = align(x, y, weights=z, scale=True)
        return sum(np.sum(getattr(found, name) ** 2) for name in FIELDS[:-1])

    along = sum(float((np.asarray(g) * e).sum()) for g, e in zip(gradients, d, strict=True))
    assert along == pytest.approx((at(1) - at(-1)) / (2 * t), rel=1e-2 if single else 1e-6)
    # What raises elsewhere is NaN, in its own cloud alone: values, and derivatives of R.
    bad = w.at[1].set(0.0).at[2, 0].set(-1.0)
    (_, found), _ = step(a.at[0, 0, 0].set(jnp.nan), b, bad)
    assert all(bool(jnp.isnan(getattr(found, name)).all()) for name in FIELDS[:-1])
    assert not found.unique.any()
    (_, found), gradients = step(a.at[0].set(jnp.asarray(LINE, dtype=a.dtype)), b, w)
    assert not found.unique[0]
    assert bool(jnp.isfinite(found.rotation).all())
    assert bool(jnp.isnan(gradients[0][0]).any())
    assert bool(jnp.isfinite(gradients[0][1:]).all())


KINKS = {
    "one on a line": ("points on a line", True),
    "mirrored": ("mirrored", True),
    "coincident": ("coincident", True),
    "both on lines": ("both on lines", False),
    "two points": ("two points", False),
    "one point": ("one point", False),
    "many dimensions": ("many dimensions", False),
}


@pytest.mark.parametrize("name", KINKS)
def test_residuals_have_kinks_where_points_are_moved(torch, name):
    """By differences to either side: the slopes agree where the derivative is given."""
    key, kink = KINKS[name]
    a, b, _ = DEGENERATE[key]
    x = torch.tensor(a, requires_grad=True)
    least = 0.0
    for seed in range(3):
        d, t = gaussian(*a.shape, seed=20 + seed), 1e-6
        low, here, high = (float(align(a + k * t * d, b).rmsd) for k in (-1, 0, 1))
        least = max(least, abs(high + low - 2 * here) / t)
    exact = float(align(a, b).rmsd) < 1e-14  # up to rounding
    assert (least > 1e-3) == (kink or (exact and name != "one point"))
    if kink:
        with pytest.raises(ValueError, match="scale and rmsd have no derivative"):
            align(x, torch.tensor(b)).rmsd.backward()
        return
    align(x, torch.tensor(b)).rmsd.backward()
    if float(align(a, b).rmsd) > 0:
        wanted = (high - low) / (2 * t)
        assert float((x.grad.numpy() * d).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-8)
