"""Traces: shapes, tracked paths, figures, files, and two published logs."""

from __future__ import annotations

import csv
import json
import math
import os
import warnings

import numpy as np
import pytest
import scipy.linalg

import polarlib
from polarlib import Schedule, ScheduleWarning, Trace, measure, polar, schedule
from polarlib._methods import METHODS
from polarlib.testing import binomial, frank, hilbert, with_singular_values

A = with_singular_values(np.geomspace(1, 1e-2, 6), 10, seed=1)


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("shape", [(6, 6), (10, 6), (6, 10), (1, 1), (1, 5), (5, 1)])
def test_shapes(shape, form):
    a = np.random.default_rng(0).standard_normal(shape)
    k = min(shape)
    t = measure(a, "polar_express", steps=7, form=form)
    assert isinstance(t, Trace)
    assert t.n_steps == 7
    with pytest.warns(DeprecationWarning, match="is now Trace.n_steps"):
        assert t.steps == 7
    assert t.shape == shape
    assert t.form == form
    assert t.precision == "float64"
    assert t.simulated is False
    assert t.singular_values.shape == t.alignment.shape == (8, k)
    for name in ("matmuls", "orthogonality", "backward_error", "distance"):
        assert getattr(t, name).shape == (8,)
    assert t.matmuls.dtype.kind == "i"
    assert "7 steps" in repr(t)


def test_row_zero_is_the_normalised_input():
    s = np.geomspace(1, 1e-2, 6)
    for scale in (1.0, 1e200, 1e-200):
        t = measure(scale * A, "polar_express")
        np.testing.assert_allclose(t.singular_values[0], s / np.linalg.norm(s) / 1.01, rtol=1e-12)
        assert t.matmuls[0] == 0


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("name", polarlib.schedules(target="polar"))
@pytest.mark.filterwarnings("ignore:schedule 'root_2048x2048' is valid")
def test_tracked_paths_are_the_scalar_polynomial(name, form):
    chosen = schedule(name)
    if chosen.normalisation == "aol":
        pytest.skip("AOL changes the singular vectors: there are no paths of the input's own")
    t = measure(A, chosen, form=form)
    x = t.singular_values[0]
    for k, step in enumerate(chosen.steps, 1):
        x = sum(c * x ** (2 * i + 1) for i, c in enumerate(step))
        # Column by column: curves of tuned sets cross, and sorting would lose them.
        np.testing.assert_allclose(t.singular_values[k], x, atol=1e-9)
    np.testing.assert_allclose(t.alignment, 1.0, atol=1e-9)


def test_paths_that_cross_keep_their_columns():
    # Unsorted values in every step: the order of row 0 is kept.
    s = np.array([1.0, 0.8, 0.6, 0.3, 0.1])
    a = with_singular_values(s)
    t = measure(a, "jordan", steps=6)
    x = s / np.linalg.norm(s)
    for k in range(1, 7):
        x = 3.4445 * x - 4.775 * x**3 + 2.0315 * x**5
        np.testing.assert_allclose(t.singular_values[k], x, atol=1e-10)
    assert np.any(np.diff(t.singular_values[-1]) > 0)


def test_figures_from_their_definitions():
    iterates = []
    polar(A, method="you", callback=lambda k, x: iterates.append(np.array(x)))
    t = measure(A, "you")
    u, p = scipy.linalg.polar(A)
    k = 6
    for i, x in enumerate(iterates):
        assert t.orthogonality[i] == pytest.approx(
            np.linalg.norm(x.T @ x - np.eye(k)) / math.sqrt(k), rel=1e-9
        )
        h = (x.T @ A + A.T @ x) / 2
        assert t.backward_error[i] == pytest.approx(
            np.linalg.norm(A - x @ h) / np.linalg.norm(A), rel=1e-9
        )
        assert t.distance[i] == pytest.approx(np.linalg.norm(x - u) / math.sqrt(k), rel=1e-9)
    assert p.shape == (k, k)
    np.testing.assert_array_equal(t.matmuls, 3 * np.arange(6))


def test_a_flipped_sign_shows_in_the_alignment():
    flip = Schedule(
        steps=schedule("aol_nv").steps, lower=1e-3, upper=0.88, normalisation="frobenius"
    )
    with pytest.warns(ScheduleWarning, match=r"up to 0.88, but with normalisation='frobenius'"):
        t = measure(np.diag([1.0, 1e-3]), flip)
    assert t.alignment[-1, 0] == pytest.approx(-1, abs=1e-12)
    assert t.alignment[-1, 1] == pytest.approx(1, abs=1e-12)
    assert np.all(t.singular_values >= 0)


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("precision", ["float64", "bfloat16", "float8_e4m3"])
@pytest.mark.parametrize("name", ["polar_express", "polar_express_raw", "cans", "deepseek_v4"])
def test_warns_as_orthogonalize_does(name, precision, form):
    told = []
    for run in (
        lambda: measure(A, name, precision=precision, form=form),
        lambda: polarlib.orthogonalize(A, schedule=name, precision=precision, form=form),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ScheduleWarning)
            run()
        told.append([(str(w.message), w.filename) for w in caught])
    assert told[0] == told[1]
    assert len(told[0]) == (not schedule(name).is_safe_in(precision))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_reference_by_mpmath_agrees(dtype):
    a = with_singular_values(np.geomspace(1, 1e-4, 5), 7, dtype=dtype)
    for what in ("polar_express", "qdwh"):
        plain, exact = measure(a, what), measure(a, what, reference="mpmath")
        np.testing.assert_allclose(exact.singular_values, plain.singular_values, atol=1e-11)
        np.testing.assert_allclose(exact.alignment, plain.alignment, atol=1e-9)
        np.testing.assert_allclose(exact.distance, plain.distance, atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 6), (10, 6), (6, 10)])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "small"])
def test_methods(method, shape):
    a = with_singular_values(np.geomspace(1, 1e-3, 6), *shape)
    t = measure(a, method)
    result = polar(a, method=method)
    assert t.method == method
    assert t.singular_values.shape == (t.n_steps + 1, 6)
    assert t.n_steps == result.iterations
    assert t.matmuls[-1] == result.matmuls
    np.testing.assert_allclose(t.singular_values[0], np.geomspace(1, 1e-3, 6), rtol=1e-10)
    np.testing.assert_allclose(t.singular_values[-1], 1, atol=1e-12)
    assert t.orthogonality[-1] < 1e-13
    if method != "qr":
        assert t.backward_error[-1] < 1e-13
        assert t.distance[-1] < 1e-11
    else:
        assert t.distance[-1] > 1e-3


def test_methods_take_float32(lib):
    t = measure(lib.asarray(A, "float32"), "qdwh")
    assert t.precision == "float32"
    assert 1e-9 < t.orthogonality[-1] < 1e-6


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32", "float32"])
def test_precisions(lib, precision):
    if lib.name == "jax" and precision == "tf32":
        pytest.skip("slow: compiled for every format")
    x = lib.asarray(A, "float32")
    before = lib.to_numpy(x).tobytes()
    t = measure(x, "polar_express", precision=precision)
    assert lib.to_numpy(x).tobytes() == before
    native = precision == "float32" or (
        precision in ("bfloat16", "float16") and lib.name in ("torch", "jax")
    )
    assert t.precision == precision
    assert t.simulated is not native
    unit = polarlib.arrays.formats.FORMATS[precision].unit_roundoff
    path = schedule("polar_express")(t.singular_values[0])
    np.testing.assert_allclose(t.singular_values[-1], path, atol=300 * unit)


def test_divergence_is_recorded_not_raised():
    # 1.5 x - 0.5 x^3 of 3 is -9, then 351, and overflows within nine steps.
    a = with_singular_values([3.0, 0.5], 4)
    cubic = Schedule(steps=[(1.5, -0.5)] * 12, lower=0.1, normalisation="none")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        t = measure(a, cubic)
    np.testing.assert_allclose(t.singular_values[:3, 0], [3, 9, 351], rtol=1e-12)
    assert np.all(np.isnan(t.singular_values[9:]))
    for name in ("orthogonality", "backward_error", "distance"):
        assert np.all(np.isfinite(getattr(t, name)[:3])), name
        assert np.all(np.isnan(getattr(t, name)[9:])), name
    found = json.loads(json.dumps(t.to_dict(), allow_nan=False))
    assert found["orthogonality"][9:] == [None] * 4
    assert "12 steps" in repr(t)


@pytest.mark.parametrize("what", [*METHODS, "polar_express"])
def test_zero_and_rank_deficient(what):
    for rank, a in enumerate((np.zeros((4, 3)), np.outer(np.arange(4.0), np.ones(3)))):
        with np.errstate(all="ignore"):
            t = measure(a, what)
        s = t.singular_values
        known = np.isfinite(t.orthogonality)
        assert known[0]
        assert not np.any(known[1:] & ~known[:-1])  # NaN from a step on
        np.testing.assert_array_equal(np.isfinite(s), np.stack([known] * 3, axis=1))
        largest = rank / 1.01 if what == "polar_express" else rank
        np.testing.assert_allclose(s[0], [largest, 0, 0], rtol=1e-13, atol=1e-15)
        # Whatever the iterates are, their singular values are the figures' own.
        expected = np.linalg.norm(s[known] ** 2 - 1, axis=1) / math.sqrt(3)
        np.testing.assert_allclose(t.orthogonality[known], expected, rtol=1e-12, atol=1e-14)
        if what in ("svd", "structured", "qr", "small"):
            np.testing.assert_allclose(s[-1], 1, rtol=1e-14)
        if rank == 0:
            np.testing.assert_array_equal(t.backward_error[known], 0)
        elif what != "qr":
            np.testing.assert_allclose(t.alignment[known, 0], 1, rtol=1e-13)
        found = json.loads(json.dumps(t.to_dict(), allow_nan=False))
        assert [x is not None for x in found["orthogonality"]] == known.tolist()


# -- files -----------------------------------------------------------------------------------


def test_to_dict_round_trip():
    t = measure(A, "polar_express", precision="bfloat16", steps=3)
    text = json.dumps(t.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["method"] == "polar_express"
    assert back["precision"] == "bfloat16"
    assert back["simulated"] is True
    assert back["shape"] == [10, 6]
    for name in ("matmuls", "singular_values", "alignment", "orthogonality", "backward_error"):
        np.testing.assert_array_equal(np.array(back[name]), getattr(t, name))


def test_to_csv_round_trip(tmp_path):
    t = measure(A, "polar_express", steps=3)
    path = tmp_path / "trace.csv"
    t.to_csv(path)
    t.to_csv(str(path))  # again, over the old file
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    for name in ("matmuls", "orthogonality", "backward_error", "distance"):
        np.testing.assert_array_equal([float(row[name]) for row in rows], getattr(t, name))
    for i in range(6):
        column = [float(row[f"sigma_{i + 1}"]) for row in rows]
        np.testing.assert_array_equal(column, t.singular_values[:, i])
    assert os.listdir(tmp_path) == ["trace.csv"]


def test_csv_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    t = measure(A, "polar_express", steps=3)
    path = tmp_path / "trace.csv"
    path.write_text("old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        t.to_csv(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["trace.csv"]
    with pytest.raises(OSError, match="nowhere"):
        t.to_csv(tmp_path / "nowhere" / "trace.csv")


def test_nan_becomes_null():
    a = np.diag([1.0, 0.0])  # no inverse: the first iterate is not finite
    with np.errstate(all="ignore"):
        t = measure(a, "newton")
    found = json.loads(json.dumps(t.to_dict(), allow_nan=False))
    assert found["singular_values"] == [[1.0, 0.0], [None, None]]
    assert found["alignment"][1] == [None, None]
    for name in ("orthogonality", "backward_error", "distance"):
        first, last = found[name]
        assert math.isfinite(first), name
        assert last is None, name


# -- bad calls -------------------------------------------------------------------------------

BAD = [
    (lambda: measure(np.zeros((2, 3, 3)), "svd"), ValueError, r"one matrix.*\(2, 3, 3\)"),
    (lambda: measure(np.zeros((0, 3)), "svd"), ValueError, r"\(0, 3\)"),
    (lambda: measure(np.ones(3), "svd"), ValueError, r"\(3,\)"),
    (lambda: measure(None, "svd"), TypeError, "None"),
    (lambda: measure(np.full((2, 2), np.nan), "svd"), ValueError, "NaN"),
    (lambda: measure(np.full((2, 2), np.inf), "you"), ValueError, "infinity"),
    (lambda: measure(A, "sdv"), ValueError, "'sdv'.*did you mean 'svd'"),
    (lambda: measure(A, None), ValueError, "unknown method None"),
    (lambda: measure(A, [(1.5, -0.5)]), ValueError, "1.5"),
    (lambda: measure(A, "svd", steps=2), ValueError, "steps.*'svd'"),
    (lambda: measure(A, "you", steps=0), ValueError, "steps.*0"),
    (lambda: measure(A, "you", steps=6), ValueError, "5 steps.*6"),
    (lambda: measure(A, "you", steps=2.5), ValueError, "2.5"),
    (lambda: measure(A, "you", form="auto"), ValueError, "form must be 'plain' or 'gram'.*'auto'"),
    (lambda: measure(A, "qdwh", form="gram"), ValueError, "form"),
    (lambda: measure(A, "you", precision="half"), ValueError, "'half'"),
    (lambda: measure(A, "qdwh", precision="bfloat16"), ValueError, "'qdwh'.*'bfloat16'"),
    (lambda: measure(A, "you", reference="exact"), ValueError, "'svd' or 'mpmath', got 'exact'"),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD)
def test_bad_calls(call, error, match):
    with pytest.raises(error, match=match):
        call()


# -- published logs --------------------------------------------------------------------------


def test_newton_on_hilbert_6():
    result = polar(hilbert(6), method="newton")
    assert result.iterations == 7
    np.testing.assert_allclose(
        result.trace[:5],
        [1.236974e03, 9.907912e-01, 9.407495e-01, 5.931747e-01, 3.697098e-02],
        rtol=5e-7,
    )


# A published log has 8 for Frank-16; with the stopping test that gives its 7 for the other two, the
# seventh change is 2.4e-9, smaller than hilb(6)'s, and an eighth iteration is not needed.
@pytest.mark.parametrize(("a", "iterations"), [(binomial(16), {7}), (frank(16), {7, 8})])
def test_newton_iterations(a, iterations):
    assert polar(a, method="newton").iterations in iterations


# Iterations of the scalar recurrences for condition numbers kappa.
@pytest.mark.parametrize(
    ("condition", "qdwh", "newton_schulz"), [(10, 4, 11), (1e2, 4, 17), (1e3, 4, 22), (1e5, 5, 34)]
)
def test_iteration_counts(condition, qdwh, newton_schulz):
    a = with_singular_values([1.0, 1 / condition])
    # The matrix methods have bounds instead of sigma_max and sigma_min: one more at most.
    assert qdwh <= polar(a, method="qdwh").iterations <= qdwh + 1
    assert newton_schulz - 1 <= polar(a, method="newton_schulz").iterations <= newton_schulz + 2


@pytest.mark.parametrize("normalisation", ["moments", "schatten4", "frobenius"])
@pytest.mark.parametrize("step", [(0.0, 1.0), (1.5, -0.5), (2.0, -1.5, 0.5)])
def test_row_zero_where_the_first_step_absorbs_the_norm(normalisation, step):
    """Also where its slope is zero."""
    a = 7.0 * np.random.default_rng(0).standard_normal((9, 5))
    s = Schedule(steps=[step], lower=0.1, normalisation=normalisation, name="one step")
    t = measure(a, s)
    x = t.singular_values[0]
    assert 0.2 < x.max() <= 1
    np.testing.assert_allclose(t.singular_values[1], np.abs(s(x)), rtol=1e-10, atol=1e-13)
