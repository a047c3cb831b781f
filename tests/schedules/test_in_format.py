"""Certificates under rounding, against brute force in mpmath and against simulated formats."""

import dataclasses
import math

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from flint import arb
from hypothesis import given, settings
from numpy.testing import assert_allclose

import polarlib
from polarlib import design
from polarlib._schedules import enclosures, in_format
from polarlib._schedules.certify import Certificate
from polarlib._schedules.rounding import largest_input, rounding_bound, rounding_errors
from polarlib.arrays.formats import FORMATS, format_of, round_number
from polarlib.testing import orthonormal, with_singular_values

NARROW = ("bfloat16", "float16", "tf32", "float8_e4m3", "float8_e5m2")


# -- the scalar model --------------------------------------------------------------------------


def brute_force(s, lower, format, share, points=1200):
    """The hulls of the model by dense samples, in 30 digits."""
    f = format_of(format)
    with mpmath.workdps(30):
        lo = mpmath.mpf(lower) / s.input_divisor
        hi = mpmath.mpf(s.upper) * largest_input(f) / s.input_divisor
        w = mpmath.mpf(share) * f.unit_roundoff
        for step in s.steps:
            c = [mpmath.mpf(round_number(v, format_of(f.carrier))) for v in step]
            # Crowded at both ends: turning points of steep steps are near them.
            x = [lo * (hi / lo) ** (mpmath.mpf(i) / points) for i in range(points + 1)]
            x += [lo + (hi - lo) * i / points for i in range(points + 1)]
            p, r = zip(*(rounding_bound(c, v) for v in x), strict=True)
            lo = min(a - w * b for a, b in zip(p, r, strict=True))
            hi = max(a + w * b for a, b in zip(p, r, strict=True))
        return float(lo), float(hi)


@pytest.mark.parametrize(
    ("format", "lower", "degrees", "share"),
    [
        ("bfloat16", 1e-2, [5, 5, 5], 0.75),
        ("bfloat16", 0.1, [3, 5, 3], 1.0),
        ("float16", 1e-2, [7, 5], 0.5),
        ("float8_e4m3", 0.5, [7], 0.75),
        ("float32", 1e-2, [13, 3], 1.0),
    ],
)
def test_against_samples(format, lower, degrees, share):
    s = dataclasses.replace(design.greedy(lower, degrees), input_safety=1.05)
    c = s.certify(format=format, share=share)
    (least, low), (high, most) = c.image
    assert least == pytest.approx(low, rel=1e-15)
    assert high == pytest.approx(most, rel=1e-15)
    lo, hi = brute_force(s, lower, format, share)
    # Samples lie within; their distance from extremes enters squared.
    assert least <= lo <= low * (1 + 1e-3)
    assert high * (1 - 1e-3) <= hi <= most
    assert c.upper == pytest.approx(max(1 - low, high - 1), rel=1e-12)
    assert 0 <= c.upper - c.lower <= 1e-15 * c.upper
    assert (c.kind, c.format, c.share, c.shape) == ("scalar model", format, share, None)
    assert f"{format}, scalar model, share {share:g}" in repr(c)


step = st.lists(st.floats(-8, 8, allow_subnormal=False), min_size=2, max_size=6).map(tuple)


@given(step, st.floats(1e-3, 1), st.floats(1, 1e3), st.sampled_from([0.0, 2.0**-8, 0.1, 0.5]))
@settings(max_examples=80, deadline=None)
def test_one_step_against_samples(step, lower, ratio, weight):
    upper = lower * ratio
    with enclosures.working_precision(256):
        weight_ = in_format._exactly(weight)
        ends = in_format.scalar_landing(step, arb(lower), arb(upper), weight=weight_)
        lo, hi = (enclosures.floats(end) for end in ends)
    x = np.concatenate([np.linspace(lower, upper, 2001), np.geomspace(lower, upper, 2001)])
    x = np.clip(x, lower, upper)
    p, r = rounding_bound(step, x)
    size = sum(abs(c) * upper ** (2 * i + 1) for i, c in enumerate(step)) + 1e-300
    least, most = (p - weight * r).min(), (p + weight * r).max()
    assert lo[0] - 1e-12 * size <= least
    assert most <= hi[1] + 1e-12 * size
    # Attained: samples are off by the square of their distance, times a curvature.
    assert least <= lo[1] + 1e-2 * size
    assert hi[0] - 1e-2 * size <= most


def test_derivatives_by_roundings_are_those_of_differences():
    """Against finite differences of the engine's order of operations, for degree 9 by blocks."""
    c, x, h = (2.0, -3.0, 2.5, -1.0, 0.25), 0.8, 1e-7

    def computed(e):
        g = x * x * (1 + e[0])
        g2 = g * g * (1 + e[1])
        low, high = (c[1] * g + c[2] * g2) * (1 + e[2]), (c[3] * g + c[4] * g2) * (1 + e[3])
        z = (high * g2 + low) * (1 + e[4])
        return (c[0] * x + x * z) * (1 + e[5])

    p, errors = rounding_errors(c, x)
    assert p == pytest.approx(computed(np.zeros(6)), rel=1e-15)
    found = [(computed(h * e) - computed(-h * e)) / (2 * h) for e in np.eye(6)]
    assert_allclose(sorted(map(abs, found)), sorted(map(abs, errors)), rtol=1e-6)


def test_without_rounding_it_is_the_exact_image():
    s = design.for_precision("bfloat16", 1e-2, steps=4)
    c = s.certify(format="bfloat16", share=0)
    exact = s.image(1e-2, largest_input(format_of("bfloat16")))
    assert (c.image[0][0], c.image[1][1]) == pytest.approx(exact, rel=1e-15)


def test_share_is_three_quarters_by_default_and_the_error_grows_with_it():
    s = design.for_precision("bfloat16", 1e-3, steps=5)
    assert s.certify(format="bfloat16") == s.certify(format="bfloat16", share=0.75)
    errors = [s.certify(format="bfloat16", share=k / 8).upper for k in range(9)]
    assert errors == sorted(errors)
    assert s.error() < errors[0] * (1 + 1e-12)


@pytest.mark.parametrize("format", FORMATS)
def test_designs_for_a_format_stay_positive_in_it(format):
    for s in (
        *(polarlib.default_schedule(format, steps=k) for k in (1, 3, 5, 8, 16)),
        *(design.for_precision(format, l, steps=3) for l in (0.3, 0.05)),
    ):
        c = s.certify(format=format)
        assert c.image[0][0] > 0
        assert c.image[1][1] < 2


# Constant matrices and Hadamard matrices have entries that are rounded alike.
def adversarial(lower, n=16):
    rng = np.random.default_rng(5)
    hadamard = np.ones((1, 1))
    while len(hadamard) < n:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    spectra = [
        np.geomspace(1, lower, n),
        np.r_[1, np.full(n - 1, lower)],
        np.r_[np.ones(n // 2), np.full(n - n // 2, lower)],
        np.full(n, 0.77),
        np.r_[1.0, rng.uniform(lower, 1, n - 1)],
    ]
    yield "hadamard", hadamard
    yield "constant and more", np.full((n, n), 1 / n) + lower * orthonormal(n, n, seed=1)
    for k, spectrum in enumerate(spectra):
        yield f"random {k}", with_singular_values(spectrum, m=4 * n, seed=k)
        yield f"square {k}", with_singular_values(spectrum, seed=k)
        yield f"diagonal {k}", np.diag(spectrum)


@pytest.mark.parametrize("format", ["bfloat16", "float16", "float8_e4m3"])
def test_the_share_covers_what_is_measured(format):
    lower = 0.05
    s = design.for_precision(format, lower, steps=4)
    c = s.certify(format=format)
    for name, a in adversarial(lower):
        t = polarlib.measure(a, s, precision=format)
        kept = t.singular_values[0] >= lower * (1 - 2 * format_of(format).unit_roundoff)
        found = t.singular_values[-1]
        assert found.max() <= c.image[1][1] * (1 + 1e-6), name
        assert found[kept].min() >= c.image[0][0] * (1 - 1e-6), name


def test_less_rounding_than_there_is_would_be_refuted():
    lower, format = 0.05, "bfloat16"
    s = design.for_precision(format, lower, steps=4)
    c = s.certify(format=format, share=0)
    found = [
        polarlib.measure(a, s, precision=format).singular_values[-1].max()
        for _, a in adversarial(lower)
    ]
    assert max(found) > c.image[1][1] * (1 + 1e-3)


# -- matrices ----------------------------------------------------------------------------------


def in_the_format(a, format):
    f = format_of(format)
    return np.array([[round_number(float(v), f) for v in row] for row in a])


def cases(format, n):
    """Matrices whose entries are of a format, with singular values in [0.3, 1.1]."""
    rng = np.random.default_rng(11)
    hadamard = np.ones((1, 1))
    while len(hadamard) < n:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    for scale in rng.uniform(0.4, 1.0, 60):
        yield np.full((1, 1), scale)
        yield hadamard * (scale / math.sqrt(n))
    for k in range(10):
        spectrum = np.r_[1.0, rng.uniform(0.4, 1, n - 1)]
        yield with_singular_values(spectrum, m=3 * n, seed=k)
        yield np.diag(spectrum)


def worst(a):
    return np.linalg.svd(np.asarray(a, dtype=np.float64), compute_uv=False)[[-1, 0]]


STEPS = {
    "quintics": [(3.0, -3.2, 1.2), (1.875, -1.25, 0.375)],
    "cubics": [(2.0, -0.9), (1.5, -0.5)],
    "degrees 7 and 9": [(2.1875, -2.1875, 1.3125, -0.3125), design.minimax(9, 0.5).steps[0]],
    "a scaling": [(0.9,), (1.5, -0.5)],
}


def ratios(format, steps, *, change=lambda model: None):
    """How far outside its enclosure matrices end, relative: above 1 where they do."""
    found = []
    dtype = "float64" if format == "float64" else "float32"
    # Of the format that sums are in, so that nothing is rounded on the way.
    steps = [tuple(round_number(c, format_of(dtype)) for c in step) for step in steps]
    for a in cases(format, 4):
        a = in_the_format(a, format)
        lo, hi = worst(a)
        s = polarlib.Schedule(
            steps=steps, lower=lo * (1 - 1e-14), upper=hi * (1 + 1e-14), normalisation="none"
        )
        q = polarlib.orthogonalize(a.astype(dtype), schedule=s, precision=format, form="plain")
        model = in_format.MatrixModel(format_of(format), *a.shape)
        change(model)
        with enclosures.working_precision(128):
            try:
                ends = in_format.chain(s.steps, arb(s.lower), arb(s.upper), model.landing)
            except in_format.NotPositiveError:
                continue
            least, most = enclosures.floats(ends[0])[0], enclosures.floats(ends[1])[1]
        exact = s.image()
        low, high = worst(q)
        if change(model) is None and model.u == arb(format_of(format).unit_roundoff):
            c = s.certify(format=format, shape=a.shape)
            assert (c.image[0][0], c.image[1][1]) == pytest.approx((least, most), rel=1e-12)
        found += [(exact[0] - low) / (exact[0] - least), (high - exact[1]) / (most - exact[1])]
    return np.array(found)


@pytest.mark.thinned(4)
@pytest.mark.filterwarnings("ignore::polarlib.ScheduleWarning")
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("format", ["bfloat16", "float16", "tf32", "float32", "float64"])
def test_computed_singular_values_are_in_the_enclosure(format, name):
    found = ratios(format, STEPS[name])
    assert found.size > 40
    assert found.max() <= 1


@pytest.mark.filterwarnings("ignore::polarlib.ScheduleWarning")
@pytest.mark.parametrize("name", ["quintics", "degrees 7 and 9"])
@pytest.mark.parametrize("format", ["bfloat16", "float16"])
def test_products_of_torch_are_in_the_enclosure(format, name):
    torch = pytest.importorskip("torch")
    steps = [tuple(map(float, np.float32(step))) for step in STEPS[name]]
    proven = 0
    for a in (in_the_format(a, format) for a in cases(format, 4)):
        lo, hi = worst(a)
        s = polarlib.Schedule(
            steps=steps, lower=lo * (1 - 1e-14), upper=hi * (1 + 1e-14), normalisation="none"
        )
        x = torch.tensor(a, dtype=getattr(torch, format))
        low, high = worst(polarlib.orthogonalize(x, schedule=s, form="plain").double().numpy())
        try:
            c = s.certify(format=format, shape=a.shape)
        except ValueError:  # too much for a proof
            continue
        assert c.image[0][0] <= low <= high <= c.image[1][1]
        proven += 1
    assert proven > 40


@pytest.mark.filterwarnings("ignore::polarlib.ScheduleWarning")
def test_a_smaller_unit_roundoff_would_be_refuted():
    """The bounds are not so wide that a wrong model passes."""

    def change(model):
        model.u = model.u / 8

    assert ratios("bfloat16", STEPS["cubics"], change=change).max() > 1


@pytest.mark.parametrize(
    ("format", "lower", "n", "steps"), [("float64", 1e-3, 40, 7), ("float32", 0.05, 8, 3)]
)
def test_wide_formats(format, lower, n, steps):
    s = design.for_precision(format, lower, steps=steps)
    a = with_singular_values(np.geomspace(1, lower, n), m=3 * n, seed=2).astype(format)
    lo, hi = worst(a)
    s = dataclasses.replace(s, lower=lo * (1 - 1e-13), upper=hi, normalisation="none")
    c = s.certify(format=format, shape=(n, 3 * n))
    low, high = worst(polarlib.orthogonalize(a.T, schedule=s, form="plain"))
    assert c.image[0][0] <= low <= high <= c.image[1][1]
    assert c.upper < s.error() + (1e-6 if format == "float64" else 0.05)
    assert (c.kind, c.shape, c.lower, c.complement[1]) == ("matrix", (n, 3 * n), 0.0, 1.0)
    assert f"{format}, {n} x {3 * n}" in repr(c)


# -- what is refused -----------------------------------------------------------------------------


def test_the_step_that_may_lose_the_sign_is_named():
    s = design.greedy(1e-3, [5] * 5)
    with pytest.raises(ValueError, match=r"bfloat16 can take .* to 0 in step 1 .* smaller shape"):
        s.certify(format="bfloat16", shape=(64, 64))
    steep = polarlib.schedule("cans")
    with pytest.raises(ValueError, match=r"'cans': rounding to bfloat16 .* step 1 .*wider format$"):
        steep.certify(format="bfloat16")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"share": 0.5}, "share=0.5 needs a format"),
        ({"shape": (3, 3)}, "shape=.* needs a format"),
        ({"format": "bfloat16", "share": 0.5, "shape": (3, 3)}, "give share, .* or shape"),
        ({"format": "bfloat16", "share": 1.5}, "share must be a number from 0 to 1, got 1.5"),
        ({"format": "bfloat16", "shape": (3, 2**23)}, "sides of at most"),
        ({"format": "bfloat16", "shape": 3}, "shape must be two integers"),
        ({"format": "bf16"}, "did you mean 'bfloat16'"),
    ],
)
def test_refusals(arguments, said):
    with pytest.raises(ValueError, match=said):
        design.greedy(0.1, [5, 5]).certify(**arguments)


def test_other_targets_and_strides_are_refused():
    for s in (design.clip(4.0, [5, 5]), design.inverse_root(3, 0.1, [4, 4])):
        with pytest.raises(ValueError, match=r"certify\(format=\) needs (target|stride)"):
            s.certify(format="bfloat16")
    with pytest.raises(ValueError, match="rational"):
        design.zolotarev(2, 0.1).certify(format="bfloat16")


def test_rounded_coefficients_alone():
    """As `quantize` says, which is another question."""
    s = polarlib.schedule("polar_express")
    c = s.quantize("bfloat16").certify()
    assert isinstance(c, Certificate)
    assert c.kind == "exact"
    assert c != s.certify(format="bfloat16")
