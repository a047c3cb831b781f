"""Tangents, retractions and their inverse against definitions, other solvers and many digits."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import scipy.linalg
from conftest import DTYPES, HALF, Library, library, with_dask
from standin import cupy_standin

import polarlib
from polarlib.engine import lyapunov
from polarlib.manifold import inverse_retract, retract, tangent

EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10} | {d: float(np.finfo(d).eps) for d in DTYPES}
SHAPES = [(7, 4), (5, 5), (6, 1), (1, 1), (2, 3, 5, 3), (3, 2, 2)]
script = pytest.mark.filterwarnings("ignore:`torch.jit.script`")


def adjoint(x: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(x, -1, -2))


def gaussian(*shape: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return a + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else a


def point(*shape: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    return np.linalg.qr(gaussian(*shape, dtype=dtype, seed=seed))[0]


def norm(x: np.ndarray) -> np.ndarray:
    """Largest spectral norm of a stack."""
    return np.max(np.linalg.norm(x, 2, axis=(-2, -1))) if x.size else 0.0


def tangent_of(x: np.ndarray, size: float, seed: int = 1) -> np.ndarray:
    """A tangent of a given spectral norm, by the definition."""
    dtype = "complex128" if x.dtype.kind == "c" else "float64"
    z = gaussian(*x.shape, dtype=dtype, seed=seed)
    v = z - x @ (adjoint(x) @ z + adjoint(z) @ x) / 2
    each = np.linalg.norm(v, 2, axis=(-2, -1), keepdims=True)
    return v * (size / np.where(each == 0, 1, each))


def wide_of(dtype: str) -> str:
    return "complex128" if dtype.startswith("complex") else "float64"


def given(lib: Library, a: np.ndarray, dtype: str):
    """Array of a library, rounded to a dtype, and its values in double precision."""
    x = lib.asarray(a, dtype)
    return x, lib.to_numpy(x).astype(wide_of(dtype))


def check(lib: Library, x, like, shape) -> np.ndarray:
    """Type, dtype, device, shape; the values in double precision."""
    assert type(x) is type(like)
    assert (lib.dtype_name(x), lib.device(x)) == (lib.dtype_name(like), lib.device(like))
    assert tuple(x.shape) == shape
    return lib.to_numpy(x).astype(wide_of(lib.dtype_name(like)))


def cases(lib: Library):
    """Shapes and dtypes; fewer for JAX, which compiles for each."""
    if lib.name == "jax":
        return [((3, 4, 2), "complex64")]
    if lib.name == "dask":
        return [((2, 7, 4), "float64"), ((3, 3), "complex64")]
    dtypes = [d for d in (*DTYPES, *HALF) if lib.has(d)]
    return list(itertools.product(SHAPES[:: 1 if lib.name == "numpy" else 2], dtypes))


# -- every library -----------------------------------------------------------------------------


@with_dask
def test_every_library(lib):
    for shape, dtype in cases(lib):
        wide, eps, n = wide_of(dtype), EPS[dtype], shape[-1]
        x, exact_x = given(lib, point(*shape, dtype=wide), dtype)
        z, exact_z = given(lib, gaussian(*shape, dtype=wide, seed=1), dtype)
        v = check(lib, tangent(x, z), x, shape)
        sym = adjoint(exact_x) @ exact_z
        assert norm(v - exact_z + exact_x @ (sym + adjoint(sym)) / 2) <= 20 * n * eps
        moved, exact_v = given(lib, 0.7 * v, dtype)
        y = retract(x, moved)
        exact_y = check(lib, y, x, shape)
        u, _, vh = np.linalg.svd(exact_x + exact_v, full_matrices=False)
        assert norm(exact_y - u @ vh) <= 20 * n * eps
        back = check(lib, inverse_retract(x, y), x, shape)
        # Of rounded points: the condition number is at most 1 + |v|^2.
        assert norm(back - exact_v) <= 40 * n * eps * (1 + norm(exact_v) ** 2)
        for before, now in ((exact_x, x), (exact_z, z)):
            np.testing.assert_array_equal(lib.to_numpy(now).astype(wide), before)


@pytest.mark.parametrize("dtype", ["float32", "complex128", "bfloat16"])
def test_cupy(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    lib = Library("numpy")
    with cupy_standin.installed() as cupy:
        x = cupy.asarray(lib.asarray(point(2, 7, 4, dtype=wide_of(dtype)), dtype))
        v = tangent(x, cupy.asarray(lib.asarray(0.3 * gaussian(2, 7, 4), dtype)))
        y = retract(x, v)
        found = {"retract": y, "inverse": inverse_retract(x, y), "tangent": v}
        found["schedule"] = retract(x, v, schedule="newton_schulz_5")
        for array in found.values():
            assert isinstance(array, cupy.ndarray)
            assert array.dtype == x.dtype
        host = {name: np.asarray(a.get(), wide_of(dtype)) for name, a in found.items()}
        with pytest.raises(ValueError, match="positive real parts"):
            inverse_retract(x, -x)
    eps = EPS[dtype]
    assert norm(host["inverse"] - host["tangent"]) <= 200 * eps
    assert norm(host["schedule"] - host["retract"]) <= 1e-4 + 30 * eps


def test_empty_and_lists():
    for shape in [(0, 0), (3, 0), (0, 4, 2)]:
        x = np.zeros(shape, "float32")
        for f in (tangent, retract, inverse_retract):
            found = f(x, x)
            assert (found.shape, found.dtype) == (shape, x.dtype)
        assert retract(x, x, schedule="newton_schulz_3").shape == shape
    assert retract([[1], [0]], [[0], [1]]).dtype == np.float64
    np.testing.assert_allclose(retract([[1], [0]], [[0], [1]]), np.sqrt([[0.5], [0.5]]))
    np.testing.assert_allclose(
        inverse_retract([[1], [0]], [[0.6], [0.8]]), [[0], [4 / 3]], atol=1e-15
    )


def test_leading_axes_broadcast():
    x, v = point(5, 3), tangent_of(point(5, 3), 0.5)
    many = np.stack([v, 0 * v, -v])
    y = retract(x, many)
    assert y.shape == (3, 5, 3)
    np.testing.assert_allclose(y[1], x, atol=1e-15)
    np.testing.assert_allclose(inverse_retract(x, y), many, atol=1e-14)
    np.testing.assert_allclose(tangent(y, v), np.stack([tangent(p, v) for p in y]), atol=1e-15)
    np.testing.assert_allclose(
        retract(x, many, schedule="newton_schulz_5")[0],
        retract(x, v, schedule="newton_schulz_5"),
        atol=1e-14,
    )
    found = inverse_retract(x.astype("float32"), y[0])
    assert found.dtype == np.float64


def test_layouts():
    x, v = point(5, 3), tangent_of(point(5, 3), 0.5)
    expected = retract(x, v), tangent(x, v), inverse_retract(x, retract(x, v))
    for change in (
        np.asfortranarray,
        lambda a: np.repeat(a, 2, -1)[:, ::2],
        lambda a: a[::-1][::-1],
    ):
        p, w = change(x), change(v)
        found = retract(p, w), tangent(p, w), inverse_retract(p, retract(p, w))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-15)


# -- definitions -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_tangents(dtype):
    for shape in [(7, 4), (4, 4), (1, 1)]:
        x, z = point(*shape, dtype=dtype), gaussian(*shape, dtype=dtype, seed=1)
        v = tangent(x, z)
        assert norm(adjoint(x) @ v + adjoint(v) @ x) <= 1e-14
        np.testing.assert_allclose(tangent(x, v), v, atol=1e-14)
        for seed in range(10, 15):  # the rest is orthogonal to every tangent
            w = tangent_of(x, 1.0, seed)
            assert abs(np.sum(np.conj(w) * (z - v)).real) <= 1e-13


def test_any_scale():
    x, z = point(6, 3), gaussian(6, 3, seed=1)
    expected = tangent(x, z)
    for scale in (2.0**-1000, 2.0**1020):
        np.testing.assert_allclose(tangent(x, z * scale) / scale, expected, atol=1e-15)
    v = tangent_of(x, 1.0)
    np.testing.assert_allclose(retract(x, v * 1e-300), x, atol=2e-15)
    # Far along a tangent of full rank it is the polar factor of that tangent.
    far = np.linalg.svd(v, full_matrices=False)
    np.testing.assert_allclose(retract(x, v * 1e300), far[0] @ far[2], atol=1e-13)
    assert np.isfinite(retract(x, v * 1e300, schedule="newton_schulz_5")).all()
    np.testing.assert_allclose(retract(x, v * 1e-300, schedule="newton_schulz_5"), x, atol=1e-14)
    assert np.isfinite(retract(x.astype("f4"), (v * 1e38).astype("f4"), schedule="jordan")).all()


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_inverse_is_tangent_and_leads_back(dtype):
    """Two criteria: the first holds of any S > 0, the second shows that it is the right one."""
    for shape in [(9, 4), (4, 4), (30, 20), (1, 1), (5, 1)]:
        for size in (0.0, 1e-9, 1e-2, 1.0, 10.0, 1e3, 1e6):
            x = point(*shape, dtype=dtype)
            v = tangent_of(x, size)
            y = retract(x, v)
            w = inverse_retract(x, y)
            large, n = np.hypot(1, size), shape[-1]
            rounding = 10 * n * 2.0**-52 * large
            assert norm(retract(x, w) - y) <= rounding
            assert norm(adjoint(x) @ w + adjoint(w) @ x) <= rounding
            assert norm(w - v) <= rounding * large


def test_inverse_against_other_solvers():
    for seed in range(4):
        x = point(8, 5, seed=seed, dtype="complex128")
        y = retract(x, tangent_of(x, 2.0, seed))
        m = adjoint(x) @ y
        s = scipy.linalg.solve_continuous_lyapunov(m, 2 * np.eye(5))
        np.testing.assert_allclose(inverse_retract(x, y), y @ s - x, atol=1e-13)
        # S^2 = I + V^H V, since V is tangent.
        v = inverse_retract(x, y)
        np.testing.assert_allclose(s @ s, np.eye(5) + adjoint(v) @ v, atol=1e-13)


def test_inverse_against_many_digits():
    """A matrix that is far from normal: S by a linear system of n^2 unknowns, at 60 digits."""
    m = 0.4 * np.eye(4) + np.diag([0.55, 0.5, 0.45], 1)
    y = np.concatenate([m, scipy.linalg.sqrtm(np.eye(4) - m.T @ m).real])
    x = np.eye(8)[:, :4]
    with mpmath.workdps(60):
        big = mpmath.matrix(16, 16)
        for i, j, k in itertools.product(range(4), repeat=3):
            big[4 * i + j, 4 * k + j] += mpmath.mpf(float(m[i, k]))
            big[4 * i + j, 4 * i + k] += mpmath.mpf(float(m[j, k]))
        right = mpmath.matrix([2 * (i == j) for i in range(4) for j in range(4)])
        s = np.array([float(e) for e in mpmath.lu_solve(big, right)]).reshape(4, 4)
    assert 10 < np.linalg.norm(s, 2) < 200
    np.testing.assert_allclose(inverse_retract(x, y), y @ s - x, rtol=1e-12, atol=1e-12)


def test_closed_forms():
    for angle in (-1.5, -0.3, 0.0, 1e-9, 0.7, 1.55):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = np.tan(angle) * np.array([[0, -1], [1, 0]])
        found = inverse_retract(np.eye(2), turn)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(retract(np.eye(2), expected), turn, atol=2e-16)
    # On a sphere it is the projection from the centre.
    x, y = point(5, 1), point(5, 1, seed=3)
    y = y * np.sign(x.T @ y)
    np.testing.assert_allclose(inverse_retract(x, y), y / (x.T @ y) - x, rtol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_determinants_keep_their_sign(n):
    """X^T V is skew: its eigenvalues are imaginary, and det(I + X^T V) > 0."""
    for seed, size in itertools.product(range(4), (0.1, 1.0, 100.0)):
        x = point(n, n, seed=seed)
        y = retract(x, tangent_of(x, size, seed))
        assert np.linalg.det(y) == pytest.approx(np.linalg.det(x), abs=1e-12)


def test_second_order():
    """It differs from the geodesic by the third power of the length: ``x expm(t w)``, w skew."""
    w = gaussian(4, 4)
    w = (w - w.T) / np.linalg.norm(w - w.T, 2)
    x = point(4, 4, seed=2)
    gaps = [norm(retract(x, x @ w * t) - x @ scipy.linalg.expm(w * t)) for t in (2e-2, 1e-2)]
    assert 7.5 < gaps[0] / gaps[1] < 8.5


# -- refusals ----------------------------------------------------------------------------------


def test_points_that_are_not_reached():
    x = point(6, 3)
    with pytest.raises(ValueError, match=r"must have positive real parts, got -1.0e\+00 as the le"):
        inverse_retract(x, -x)
    with pytest.raises(ValueError, match=r"parts, got 0.0e\+00 as the least"):
        inverse_retract(np.eye(6)[:, :3], np.eye(6)[:, 3:])
    many = np.stack([retract(x, tangent_of(x, 1.0)), x * [1, 1, -1], x])
    with pytest.raises(
        ValueError, match=r"-1.0e\+00 as the least in matrix \(1,\) of the stack; use points"
    ):
        inverse_retract(x, many)
    # The eigenvalue that is named, between 0 and rounding and below 0.
    for angle, words in (
        (np.pi / 2, "beyond rounding, got 6.1e-17"),
        (1.6, "got -2.9e-02"),
    ):
        c, s = np.cos(angle), np.sin(angle)
        with pytest.raises(ValueError, match=words):
            inverse_retract(np.eye(2), np.array([[c, -s], [s, c]]))
    with pytest.raises(ValueError, match=r"x\^H y overflows; x and y must have orthonormal"):
        inverse_retract(1e200 * x, 1e200 * x)


def test_the_limit_of_a_right_angle():
    """Rotations by all but a right angle have an inverse, though it is large."""
    for dtype, gaps in (("float64", (1e-3, 1e-6, 1e-8)), ("float32", (1e-2, 1e-3))):
        for gap in gaps:
            angle = np.pi / 2 - gap
            turn = scipy.linalg.block_diag(
                [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], 1.0
            ).astype(dtype)
            v = inverse_retract(np.eye(3, dtype=dtype), turn)
            size, eps = 1 / np.cos(angle), EPS[dtype]
            assert norm(v + v.T) <= 100 * eps * size
            assert norm(retract(np.eye(3, dtype=dtype), v) - turn) <= 100 * eps
            assert v[1, 0] == pytest.approx(np.tan(angle), rel=20 * eps * size)


def test_bad_input():
    x = point(4, 2)
    for f, name in ((tangent, "z"), (retract, "v"), (inverse_retract, "y")):
        for bad in (np.nan, np.inf):
            with pytest.raises(ValueError, match=rf"^{name} contains NaN or infinity in 8 of 8"):
                f(x, np.full((4, 2), bad))
            with pytest.raises(ValueError, match=r"^x contains NaN or infinity"):
                f(np.full((4, 2), bad), x)
        with pytest.raises(ValueError, match=f"^x and {name} must have the same rows"):
            f(x, x[:3])
        with pytest.raises(
            ValueError, match=r"^x must have at least as many rows.*got shape \(2, 4\)"
        ):
            f(x.T, x.T)
        with pytest.raises(ValueError, match="must broadcast"):
            f(np.stack([x, x]), np.stack([x, x, x]))
        with pytest.raises(TypeError, match=f"{name} must be an array of numbers"):
            f(x, [["a"]])


def test_wrong_schedules():
    x = point(4, 2)
    for schedule, error, words in (
        (
            "adaptive",
            ValueError,
            "which estimates a spectrum that is known for a retraction; use 'newton_schulz_5'",
        ),
        ("halley", ValueError, "polynomials"),
        ("lipschitz_cap", ValueError, "must have the target 'polar'"),
        (polarlib.design.inverse_root(3, 0.5, [4]), ValueError, "stride 3"),
        ("newton", ValueError, "did you mean 'newton_schulz_"),
        (3, TypeError, "schedule must be a name, a path or a Schedule"),
    ):
        with pytest.raises(error, match=words):
            retract(x, 0 * x, schedule=schedule)


@pytest.mark.parametrize("wrong", ["half", "other", "indefinite"])
def test_a_wrong_solution_is_not_returned(monkeypatch, wrong):
    right = lyapunov.solve

    def spoilt(a, b, w):
        s = right(a, b, w)
        if wrong == "half":
            return s * (1 + 1e-12)
        return s.conj().T[::-1, ::-1] if wrong == "other" else s - 2 * np.eye(len(s))

    monkeypatch.setattr(lyapunov, "solve", spoilt)
    x = point(6, 3)
    y = retract(x, tangent_of(x, 0.5))
    with pytest.raises(ValueError, match="beyond rounding"):
        inverse_retract(x, y)


def test_a_solution_that_is_not_definite_is_not_returned(monkeypatch):
    """Solvers of another kind find one where eigenvalues are negative."""

    def of_bartels_and_stewart(a, _, w):
        return scipy.linalg.solve_continuous_lyapunov(a, w)

    monkeypatch.setattr(lyapunov, "solve", of_bartels_and_stewart)
    x = point(6, 3)
    inverse_retract(x, retract(x, tangent_of(x, 0.5)))
    with pytest.raises(ValueError, match=r"must have positive real parts, got -7.0e-01"):
        inverse_retract(x, x * [1, 0.5, -0.7])


# -- by a schedule -----------------------------------------------------------------------------


def bound(schedule: polarlib.Schedule, v: np.ndarray) -> float:
    return schedule.error(schedule.upper / np.sqrt(1 + np.sum(np.abs(v) ** 2)))


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF])
def test_error_of_schedules(lib, dtype):
    """The documented inequality, with what products in the format round."""
    if not lib.has(dtype) or (lib.name == "jax" and dtype != "float32"):
        pytest.skip("no such dtype, or slow")
    own = polarlib.design.greedy(0.8, [3, 3])
    s = polarlib.schedule("newton_schulz_3", 1)
    names = [s, polarlib.schedule("newton_schulz_5", 2), own, polarlib.schedule("polar_express", 5)]
    for schedule in names if lib.name == "numpy" else names[:1]:
        for shape, size in itertools.product([(6, 3), (5, 5)], (1e-3, 0.3, 2.0)):
            wide = wide_of(dtype)
            exact_x = point(*shape, dtype=wide)
            x, _ = given(lib, exact_x, dtype)
            v, exact_v = given(lib, tangent_of(exact_x, size), dtype)
            y = check(lib, retract(x, v, schedule=schedule), x, shape)
            gap = norm(y - retract(exact_x, tangent_of(exact_x, size)))
            # Rounding of the arguments, and of a few products, for sizes where s is not steep.
            rounding = 30 * EPS[dtype] * (1 + size) * len(schedule) ** 0.5
            if schedule is names[3]:
                rounding *= schedule.slope / 10
            assert gap <= bound(schedule, exact_v) + rounding


def test_error_of_schedules_is_reached():
    """Of rank one, |V|_2 = |V|_F and the bound is an equality; singular vectors are exact."""
    x, v = np.eye(4)[:, :2], np.zeros((4, 2))
    for size in (0.1, 0.5, 2.0):
        v[2, 0] = size
        for name, steps in (("newton_schulz_3", 1), ("newton_schulz_3", 3), ("newton_schulz_5", 1)):
            s = polarlib.schedule(name, steps)
            cheap, exact = retract(x, v, schedule=s), retract(x, v)
            assert norm(cheap - exact) == pytest.approx(bound(s, v), rel=1e-9, abs=1e-14)
            np.testing.assert_allclose(polarlib.nearest_orthogonal(cheap), exact, atol=1e-13)
            if (name, steps) == ("newton_schulz_3", 1):
                assert bound(s, v) <= 3 / 8 * size**4


def test_intervals_and_input_divisions():
    """The largest singular value goes to the upper end, whatever the schedule's normalisation."""
    x = point(6, 3)
    v = tangent_of(x, 0.4)
    c = np.sqrt(1 + np.sum(v**2))
    u, sigma, vh = np.linalg.svd(x + v, full_matrices=False)
    steps = [(1.5, -0.5), (1.5, -0.5)]
    for how in (
        {"normalisation": "none", "upper": 1.2},
        {"normalisation": "none", "upper": 1.2, "input_safety": 1.1},
        {"normalisation": "frobenius", "upper": 1.0, "input_safety": 1.05},
        {"normalisation": "schatten4", "upper": 0.9},
    ):
        s = polarlib.Schedule(steps, lower=0.3, **how)
        f = 1.0 if how["normalisation"] == "none" else how.get("input_safety", 1.0)
        expected = (u * s(sigma * s.upper / (c * f))) @ vh
        np.testing.assert_allclose(retract(x, v, schedule=s), expected, atol=1e-14)
        assert norm(expected - u @ vh) <= bound(s, v) * (1 + 1e-12)


def test_newton_schulz_does_not_diverge():
    """Of any V, V = t X among them, at a point: ``1 + t <= sqrt(2) sqrt(1 + t^2)``."""
    for n, m in ((1, 1), (1, 4), (3, 5)):
        x = point(m, n)
        for t in (0.5, 1.0, 3.0):
            for v in (t * x, t * x[:, :1] @ np.eye(1, n), gaussian(m, n, seed=7) * t):
                for name in ("newton_schulz_3", "newton_schulz_5"):
                    y = retract(x, v, schedule=polarlib.schedule(name, 12))
                    assert norm(y) <= 1 + 1e-12


def test_schedules_in_files(tmp_path):
    s = polarlib.design.greedy(0.7, [3, 5])
    path = tmp_path / "own.json"
    s.to_json(path)
    x = point(5, 2)
    v = tangent_of(x, 0.3)
    np.testing.assert_array_equal(retract(x, v, schedule=path), retract(x, v, schedule=s))
    assert np.isfinite(retract(x, v, schedule="auto")).all()


def test_orthonormality_does_not_drift():
    """A thousand cheap steps: what one misses the next one corrects."""
    s = polarlib.schedule("newton_schulz_3", 1)
    x = point(8, 3)
    worst = 0.0
    for k in range(1000):
        v = tangent(x, gaussian(8, 3, seed=k))
        v *= 0.2 / np.linalg.norm(v)
        x = retract(x, v, schedule=s)
        worst = max(worst, norm(x.T @ x - np.eye(3)))
    # One step leaves 2 (3/8) 0.2^4 of I; tangents at such points are so but for as much again.
    assert worst <= 2 * 2 * 3 / 8 * 0.2**4
    assert norm(tangent(x, x @ np.diag([0.0, 0, 1])) - 0) <= worst


# -- derivatives -------------------------------------------------------------------------------


def functions():
    return {
        "tangent": (tangent, 0),
        "retract": (retract, 1),
        "schedule": (lambda x, v: retract(x, v, schedule="newton_schulz_5"), 1),
        "inverse": (inverse_retract, 2),
    }


def arguments(name: str, shape: tuple[int, ...], dtype: str, size: float = 0.8):
    """A point and any matrix, a tangent, or another point."""
    x = point(*shape, dtype=dtype)
    kind = functions()[name][1]
    if kind == 0:
        return x, gaussian(*shape, dtype=dtype, seed=4)
    v = tangent_of(x, size, 4)
    return x, v if kind == 1 else retract(x, v)


# All of them in `nox -s full`: rules of the parts are tested elsewhere.
SOME = [pytest.param(n, marks=() if n == "inverse" else pytest.mark.slow) for n in functions()]


@script
@pytest.mark.parametrize("name", functions())
def test_gradcheck(torch, name):
    f, _ = functions()[name]
    both = [torch.tensor(a, requires_grad=True) for a in arguments(name, (4, 2), "float64")]
    assert torch.autograd.gradcheck(f, both, check_forward_ad=True)


@script
@pytest.mark.parametrize("shape", [(3, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOME)
def test_second_derivatives(torch, name, shape):
    f, _ = functions()[name]
    both = [torch.tensor(a, requires_grad=True) for a in arguments(name, shape, "complex128")]
    assert torch.autograd.gradcheck(f, both, check_forward_ad=True)
    both = [torch.tensor(a, requires_grad=True) for a in arguments(name, shape, "float64")]
    assert torch.autograd.gradgradcheck(f, both, check_fwd_over_rev=True)


@script
def test_derivatives_at_coinciding_points(torch):
    """V = 0, Y = X: all singular values of X + V are equal; so are the eigenvalues of X^T Y."""
    x = torch.tensor(point(4, 2), requires_grad=True)
    for f, other in ((retract, 0 * x.detach()), (inverse_retract, x.detach().clone())):
        assert torch.autograd.gradcheck(f, (x, other.requires_grad_()), check_forward_ad=True)
    # The derivative of a retraction at 0 is the identity on tangents.
    v = torch.tensor(tangent_of(point(4, 2), 1.0))
    _, moved = torch.func.jvp(lambda w: retract(x.detach(), w), (0 * v,), (v,))
    torch.testing.assert_close(moved, v)
    _, back = torch.func.jvp(lambda y: inverse_retract(x.detach(), y), (x.detach(),), (v,))
    torch.testing.assert_close(back, v)


@script
def test_derivatives_near_the_limit(torch):
    """By the rule ``dV`` of an angle near a right one: ``d tan = (1 + tan^2)``."""
    for gap in (1e-1, 1e-3, 1e-5):
        angle = torch.tensor(np.pi / 2 - gap, dtype=torch.float64, requires_grad=True)
        c, s = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        (found,) = torch.autograd.grad(inverse_retract(torch.eye(2).double(), turn)[1, 0], angle)
        angle = angle.detach()
        assert float(found) == pytest.approx(1 + np.tan(float(angle)) ** 2, rel=1e-14 / gap)


@pytest.mark.parametrize("name", functions())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_in_narrower_formats(torch, name, dtype):
    f, _ = functions()[name]
    x, other = (
        torch.tensor(a).to(getattr(torch, dtype)) for a in arguments(name, (6, 3), "float64")
    )
    found, exact = [], []
    for widen, gradients in ((False, found), (True, exact)):
        both = [a.double() if widen else a.clone() for a in (x, other)]
        both = [a.requires_grad_() for a in both]
        out = f(*both)
        (out.double() * torch.arange(18.0, dtype=torch.float64).reshape(6, 3)).sum().backward()
        gradients.extend(a.grad for a in both)
    for a, b in zip(found, exact, strict=True):
        assert str(a.dtype) == f"torch.{dtype}"
        limit = 30 * EPS[dtype] * (4 if name == "inverse" else 1)
        assert float((a.double() - b).norm() / b.norm()) <= limit


@script
@pytest.mark.parametrize("name", functions())
def test_torch_func(torch, name):
    f, _ = functions()[name]
    both = [torch.tensor(a) for a in arguments(name, (3, 4, 2), "float64")]

    def loss(x, y):
        return (f(x, y) ** 3).sum()

    torch.testing.assert_close(torch.vmap(f)(*both), f(*both))
    each = torch.func.grad(loss, argnums=(0, 1))
    whole = each(*both)
    for a, b in zip(torch.vmap(each)(*both), whole, strict=True):
        torch.testing.assert_close(a, b)
    e = [torch.tensor(gaussian(3, 4, 2, seed=9 + i)) for i in range(2)]
    _, along = torch.func.jvp(loss, tuple(both), tuple(e))
    expected = sum((g * d).sum() for g, d in zip(whole, e, strict=True))
    torch.testing.assert_close(along, expected)
    one = torch.vmap(f, in_dims=(None, 0))(both[0][0], torch.stack([both[1][0]] * 2))
    torch.testing.assert_close(one[1], f(both[0][0], both[1][0]))


def test_torch_refuses_inside_vmap(torch):
    x = torch.tensor(point(3, 4, 2))
    y = torch.stack([x[0], -x[1], x[2]])
    with pytest.raises(ValueError, match=r"least in matrix \(1,\) of the stack"):
        torch.vmap(inverse_retract)(x, y)
    y[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="y contains NaN"):
        torch.vmap(inverse_retract)(x, y)


def test_torch_settings(torch):
    """Autocast and the precision of float32 products change nothing."""
    x, v = (torch.tensor(a, dtype=torch.float32) for a in arguments("retract", (40, 20), "float64"))
    y = retract(x, v)
    expected = tangent(x, v), y, inverse_retract(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tangent(x, v), retract(x, v), inverse_retract(x, y)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = tangent(x, v), retract(x, v), inverse_retract(x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SOME)
def test_jax(name):
    xp = library("jax").xp
    import jax
    from jax.test_util import check_jvp

    f, _ = functions()[name]
    dtype = "complex128" if name == "inverse" else "float64"
    both = [xp.asarray(a) for a in arguments(name, (2, 3, 2), dtype)]
    f = jax.jit(f)
    check_jvp(f, lambda x, e: jax.jvp(f, x, e), both)

    def loss(x, y):
        return xp.sum(xp.abs(f(x, y)) ** 4)

    gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(*both)
    e = [xp.asarray(gaussian(2, 3, 2, dtype=dtype, seed=7 + i)) for i in range(2)]
    _, along = jax.jvp(loss, both, e)
    total = sum(xp.sum(g * d).real for g, d in zip(gradient, e, strict=True))
    np.testing.assert_allclose(total, along, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", functions())
def test_second_derivatives_in_jax(name):
    xp = library("jax").xp
    from jax.test_util import check_grads

    both = [xp.asarray(a) for a in arguments(name, (2, 4, 2), "float64")]
    check_grads(functions()[name][0], both, order=2, modes=["fwd", "rev"])


def test_jax_gives_nan_where_nothing_can_be_raised():
    xp = library("jax").xp
    import jax

    x = xp.asarray(point(3, 4, 2))
    v = np.array(tangent_of(point(3, 4, 2), 0.5))
    y = retract(x, xp.asarray(v))
    found = jax.jit(inverse_retract)(x, xp.stack([y[0], -x[1], xp.full((4, 2), np.nan)]))
    np.testing.assert_allclose(found[0], v[0], atol=1e-14)
    assert np.isnan(found[1:]).all()
    v[1, 0, 0] = np.nan
    for f in (tangent, lambda x, v: retract(x, v, schedule="newton_schulz_3")):
        found = np.isnan(jax.jit(f)(x, xp.asarray(v)))
        assert found.any(axis=(-2, -1)).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"matrix \(1,\)"):
        inverse_retract(x, xp.stack([x[0], -x[1], x[2]]))


def test_jax_without_double_precision():
    library("jax")
    import jax

    with jax.enable_x64(False):
        x = jax.numpy.asarray(point(5, 3))
        v = jax.numpy.asarray(tangent_of(point(5, 3), 0.7))
        found = jax.jit(lambda x, v: inverse_retract(x, retract(x, v)))(x, v)
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, v, atol=2e-5)
