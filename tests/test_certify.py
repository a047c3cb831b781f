"""Certificates and least errors, against exact fractions, mpmath and closed forms."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polarlib import Schedule, design
from polarlib._schedules import certify as module
from polarlib._schedules.certify import Certificate, certify
from polarlib.arrays.formats import FORMATS, round_number
from polarlib.design import bounds
from polarlib.design.bounds import largest_complement, least_error
from polarlib.design.compose import pade
from polarlib.design.remez import ideal
from polarlib.published import listed, schedules

DIGITS = 60
JORDAN = (3.4445, -4.775, 2.0315)


def _ulps(lo: float, hi: float) -> int:
    """Doubles from lo to hi, at most a few."""
    for k in range(9):
        if lo >= hi:
            return k
        lo = math.nextafter(lo, math.inf)
    return 9


def _intervals(steps):
    return [[module._exact(c) for c in step] for step in steps]


def _composition(steps, x, stride=2):
    for step in steps:
        x = sum(c * x ** (1 + stride * i) for i, c in enumerate(step))
    return x


def _target(target, x):
    kind, _, rest = target.partition("(")
    if kind == "clip":
        return min(x, mpmath.mpf(1))
    if kind == "power":
        return x ** mpmath.mpf(float(rest[:-1]))
    if kind == "smooth_sign":
        return x / mpmath.sqrt(x * x + mpmath.mpf(float(rest[:-1])) ** 2)
    return mpmath.mpf(1)


def _largest_seen(steps, lower, upper, *, stride=2, target="polar", points=3000):
    """Largest ``|target - s|`` that sampling finds, refined by golden sections in 60 digits."""
    with mpmath.workdps(DIGITS):

        def error(x):
            return abs(_target(target, x) - _composition(steps, x, stride))

        x = np.linspace(lower, upper, points)
        if lower > 0:
            x = np.union1d(x, np.clip(np.geomspace(lower, upper, points), lower, upper))
        aim = [float(_target(target, mpmath.mpf(v))) for v in x] if target != "polar" else 1.0
        with np.errstate(over="ignore", invalid="ignore"):  # of wild compositions
            rough = np.abs(aim - _composition(steps, x, stride))
        some = {0, len(x) - 1, *np.argsort(rough)[-3:], *range(0, len(x), len(x) // 50 or 1)}
        seen = max(error(mpmath.mpf(float(x[k]))) for k in some)
        k = int(np.argmax(rough))
        a = mpmath.mpf(float(x[max(k - 1, 0)]))
        b = mpmath.mpf(float(x[min(k + 1, len(x) - 1)]))
        golden = (mpmath.sqrt(5) - 1) / 2
        for _ in range(40):
            c, d = b - golden * (b - a), a + golden * (b - a)
            if error(c) > error(d):
                b = d
            else:
                a = c
        return max(seen, error((a + b) / 2))


def _polynomial_roots(ascending):
    """Call mpmath's polyroots, whose order of coefficients changes with its version 1.4."""
    options = {"maxsteps": 2000, "extraprec": 2000}
    if "asc" in inspect.signature(mpmath.polyroots).parameters:
        return mpmath.polyroots(ascending, asc=True, **options)
    return mpmath.polyroots(ascending[::-1], **options)


def _image_by_roots(steps, lower, upper):
    """Image from all complex roots of the derivatives (leading coefficients nonzero)."""
    with mpmath.workdps(DIGITS):
        lo, hi = mpmath.mpf(lower), mpmath.mpf(upper)
        for step in steps:
            slope = [(2 * i + 1) * mpmath.mpf(c) for i, c in enumerate(step)]
            roots = []
            if len(slope) > 1:
                roots = _polynomial_roots(slope)
            real = [mpmath.re(y) for y in roots if abs(mpmath.im(y)) < 1e-10 * abs(y)]
            turns = [sign * mpmath.sqrt(y) for y in real if y > 0 for sign in (1, -1)]
            values = [_composition([step], x) for x in (lo, hi, *(t for t in turns if lo < t < hi))]
            lo, hi = min(values), max(values)
        return lo, hi


def _greedy(lower, degrees):
    """Steps of a greedy schedule, without the checks of Schedule."""
    l, u, steps = lower, 1.0, []
    for degree in degrees:
        if u - l < 1e-9:
            steps.append(pade(degree // 2))
            continue
        b = ideal(degree, l, u)  # rounded to doubles at any cost: certify has to say what it is
        steps.append(b.coefficients)
        l, u = b.complement, 2 - b.complement
    return steps


# The arithmetic, against exact fractions.

numbers_ = st.builds(
    lambda m, w, e: (m, m + w, e),
    st.integers(-(2**70), 2**70),
    st.one_of(st.just(0), st.integers(0, 2**70)),
    st.integers(-300, 300),
)


def _ends(a):
    return a[0] * Fraction(2) ** a[2], a[1] * Fraction(2) ** a[2]


def _encloses(a, lo, hi, bits):
    """Whether an interval contains another, and by how much at most: two units of its size."""
    al, ah = _ends(a)
    unit = 2 * max(abs(al), abs(ah)) / 2 ** (bits - 1)
    return al <= lo <= hi <= ah and lo - al <= unit and ah - hi <= unit


@settings(max_examples=300)
@given(numbers_, numbers_, st.sampled_from((8, 53, 200)), st.integers(1, 6))
def test_arithmetic_rounds_outward_and_not_far(a, b, bits, n):
    (al, ah), (bl, bh) = _ends(a), _ends(b)
    assert _encloses(module._add(a, b, bits), al + bl, ah + bh, bits)
    products = [v * w for v in (al, ah) for w in (bl, bh)]
    assert _encloses(module._mul(a, b, bits), min(products), max(products), bits)
    powers = [al**n, ah**n] + ([Fraction(0)] if al <= 0 <= ah else [])
    assert _encloses(module._power(a, n, bits), min(powers), max(powers), bits)
    point = abs(a[0]), abs(a[0]), a[2]
    low, high = _ends(module._root(point, n, bits))
    value = _ends(point)[0]
    assert low**n <= value <= high**n
    assert high - low <= high / 2 ** (bits - 2)


@settings(max_examples=300)
@given(numbers_, numbers_)
def test_comparisons_and_conversions_are_exact(a, b):
    x, y = (a[0], a[0], a[2]), (b[0], b[0], b[2])
    (v, _), (w, _) = _ends(x), _ends(y)
    assert module._compare(x, y) == (v > w) - (v < w)
    low, high = module._floats(x)
    assert Fraction(low) <= v <= Fraction(high)
    assert _ulps(low, high) <= 1
    largest, smallest = module._maximum([a, b]), module._minimum([a, b])
    (al, ah), (bl, bh) = _ends(a), _ends(b)
    assert _ends(largest) == (max(al, bl), max(ah, bh))
    assert _ends(smallest) == (min(al, bl), min(ah, bh))


def test_conversions_at_the_ends_of_the_doubles():
    largest, least = float(np.finfo(float).max), 5e-324
    assert module._floats((1, 1, 1024)) == (largest, math.inf)
    assert module._floats((-1, -1, 1024)) == (-math.inf, -largest)
    assert module._floats((1, 1, -1075)) == (0.0, least)
    assert module._floats((-3, -3, -1075)) == (-2 * least, -least)
    assert module._floats((1, 1, -(10**30))) == (0.0, least)
    assert module._floats((1, 1, 10**30)) == (largest, math.inf)
    assert math.copysign(1, module._floats((0, 0, 0))[1]) == 1
    for x in (least, -least, largest, 1e-310, 0.1, -0.0):
        assert module._floats(module._exact(x)) == (x, x)


# Known answers.


@pytest.mark.parametrize(
    ("steps", "interval", "error"),
    [
        ([(1.5, -0.5)], (0.5, 1.0), 0.3125),
        ([(1.5, -0.5)], (0.5, 0.5), 0.3125),
        ([(1.5, -0.5)], (0.0, 1.0), 1.0),
        ([(1.5, -0.5)], (-1.0, 1.0), 2.0),
        ([(1.5, -0.5)], (-2.0, 2.0), 2.0),  # image [-1, 1] both from turning points and ends
        ([(1.5, -0.5)], (-3.0, 0.5), 8.0),
        ([(1.5, -0.5)] * 2, (0.5, 1.0), 1 - 1.5 * 0.6875 + 0.5 * 0.6875**3),
        ([(2.0,)], (0.25, 0.5), 0.5),
        ([(0.0,)], (0.25, 0.5), 1.0),
        ([(-1.0,)], (0.25, 0.5), 1.5),
        ([(0.0, 0.0, 1.0)], (0.5, 1.0), 1 - 2.0**-5),
        ([(0.0, 3.0, 0.0, -2.0, 0.0)], (0.0, 1.0), 1.0),
        ([(1.0,)], (1.0, 1.0), 0.0),
        ([(1.875, -1.25, 0.375)], (0.5, 1.0), 0.20703125),  # p' has a double zero at 1
        ([(1.0,)], (5e-324, 1.0), 1 - Fraction(5e-324)),
    ],
)
def test_known_answers_are_exact(steps, interval, error):
    c = certify(steps, *interval)
    assert _ulps(c.lower, c.upper) <= 2
    assert c.lower <= error <= c.upper
    assert c.complement[0] <= 1 - Fraction(error) <= c.complement[1]


def test_exact_answers_have_no_width():
    c = certify([(1.5, -0.5)], 0.5, 1.0)
    assert (c.lower, c.upper, c.width) == (0.3125, 0.3125, 0.0)
    assert c.complement == (0.6875, 0.6875)
    assert c.image == ((0.6875, 0.6875), (1.0, 1.0))
    assert repr(c) == "Certificate(0.3125 <= error <= 0.3125)"


def test_turning_value_of_a_cubic():
    """The largest value of a x - b x**3 is (2 / 3) a sqrt(a / (3 b)): irrational."""
    c = certify([(2.0, -1.0)], 0.1, 1.0)
    with mpmath.workdps(DIGITS):
        top = mpmath.mpf(4) / 3 * mpmath.sqrt(mpmath.mpf(2) / 3)
        assert c.image[1][0] <= top <= c.image[1][1]
    assert _ulps(*c.image[1]) <= 2


def test_turning_points_just_inside_and_just_outside():
    """The turning point sqrt(2 / 3) is no double: an interval may end on either side of it."""
    t = math.sqrt(2 / 3)
    for end in (math.nextafter(t, 0), t, math.nextafter(t, 1)):
        c = certify([(2.0, -1.0)], 0.1, end)
        x = Fraction(end)
        at_end = 2 * x - x**3
        inside = 3 * x * x > 2
        assert c.image[1][0] <= at_end <= c.image[1][1] or inside
        assert _ulps(*c.image[1]) <= 2


# Random and designed schedules.

coefficients = st.floats(-4, 4).filter(lambda c: c == 0 or abs(c) > 1e-3)


@settings(max_examples=60)
@given(
    st.lists(st.lists(coefficients, min_size=1, max_size=5), min_size=1, max_size=3),
    st.floats(-1.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(1, 6),
)
def test_random_compositions_lie_between_the_bounds(steps, lower, length, stride):
    upper = min(lower + length, 1.0)
    c = certify(steps, lower, upper, stride=stride)
    assert _ulps(c.lower, c.upper) <= 2
    seen = _largest_seen(steps, lower, upper, stride=stride)
    assert seen <= c.upper
    assume(seen < 1e3)  # a spike of a wild composition may be too thin for the samples
    assert seen >= c.lower * (1 - 1e-12)


@settings(max_examples=40)
@given(
    st.floats(-8, -0.3),
    st.lists(st.sampled_from((3, 5, 7, 9)), min_size=1, max_size=4),
    st.floats(-1e-2, 1e-2),
)
def test_designed_schedules_lie_between_the_bounds(exponent, degrees, disturbance):
    lower = 10.0**exponent
    steps = [tuple(c * (1 + disturbance) for c in step) for step in _greedy(lower, degrees)]
    _check(steps, lower, 1.0)


def _check(steps, lower, upper):
    """Bounds are narrow, hold for samples, and enclose what another method finds."""
    c = certify(steps, lower, upper)
    assert _ulps(c.lower, c.upper) <= 2
    with mpmath.workdps(DIGITS):
        lo, hi = _image_by_roots(steps, lower, upper)
        error, slack = max(1 - lo, hi - 1), mpmath.mpf(10) ** (15 - DIGITS)
        assert c.lower - slack <= error <= c.upper + slack
        assert c.complement[0] - slack <= 1 - error <= c.complement[1] + slack
        assert c.image[0][0] - slack <= lo <= c.image[0][1] + slack
        assert c.image[1][0] - slack <= hi <= c.image[1][1] + slack
        assert _largest_seen(steps, lower, upper) <= c.upper + slack


nonzero = coefficients.filter(bool)


@settings(max_examples=150)
@given(
    st.lists(st.lists(nonzero, min_size=1, max_size=4), min_size=1, max_size=3),
    st.floats(-1.0, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from((6, 10, 16, 24)),
)
def test_images_hold_at_any_precision(steps, lower, length, bits):
    """With few bits every rounding shows: what is rounded inward, or sure too early, fails."""
    upper = lower + length
    found = module._image(_intervals(steps), lower, upper, 2, bits)
    with mpmath.workdps(DIGITS):
        exact = _image_by_roots(steps, lower, upper)
        for (low, high, e), value in zip(found, exact, strict=True):
            slack = mpmath.mpf(10) ** -40 * (1 + abs(value))
            assert low * mpmath.mpf(2) ** e - slack <= value <= high * mpmath.mpf(2) ** e + slack


@pytest.mark.parametrize("bits", [10, 11, 12])
def test_a_turning_point_that_may_be_outside_is_not_sure(bits):
    """1000.1 - 999.6 = 0.5 is known badly, and the next step turns at sqrt(2 / 3), above it."""
    steps = [(1000.1, -999.6), (2.0, -1.0)]
    _, (low, high, e) = module._image(_intervals(steps), 1.0, 1.0, 2, bits)
    value = _composition([tuple(map(Fraction, step)) for step in steps], Fraction(1))
    assert low * 2.0**e <= value <= high * 2.0**e


@pytest.mark.parametrize(
    ("steps", "image"),
    [
        ([(0.0, 1.0)], (0.0, 1.0)),  # x**2: the least value is where the halves meet
        ([(0.0, -1.0)], (-1.0, 0.0)),
        ([(1.0, 1.0)], (-0.25, 2.0)),  # x + x**2
        ([(0.0, 1.0), (0.0, 1.0)], (0.0, 1.0)),
    ],
)
def test_even_powers_on_both_sides_of_zero(steps, image):
    c = certify(steps, -0.75, 1.0, stride=1)
    for (low, high), value in zip(c.image, image, strict=True):
        assert low <= value <= high
        assert _ulps(low, high) <= 2


@pytest.mark.parametrize("degrees", [[5] * 5, [3, 5, 7, 9, 11], [17, 3], [25], [9, 25], [5] * 12])
@pytest.mark.parametrize("lower", [1e-6, 1e-3, 0.3])
def test_ill_conditioned_and_long_compositions(lower, degrees):
    _check(_greedy(lower, degrees), lower, 1.0)


@pytest.mark.parametrize("degrees", [[3], [5], [5, 5], [9], [3, 5]])
@pytest.mark.parametrize("lower", [1e-25, 1e-30, 1e-300])
def test_one_minus_the_error_for_tiny_lower_bounds(lower, degrees):
    """Steps below 2 in their image: 1 - E is the value at the lower end."""
    steps = [tuple(c * (1 - 2.0**-20) for c in step) for step in _greedy(1e-25, degrees)]
    steps = [(step[0] + 1e-12, *step[1:]) for step in steps]  # positive for all that rounds
    c = certify(steps, lower, 1.0)
    with mpmath.workdps(DIGITS):
        value = _composition(steps, mpmath.mpf(lower))
        assert c.lower <= 1 <= c.upper or c.upper < 1
        assert c.image[0][0] <= value <= c.image[0][1]
        assert c.complement[0] <= value <= c.complement[1]
    assert _ulps(*c.complement) <= 2
    slope = math.prod(step[0] for step in steps)
    assert math.isclose(c.complement[0], slope * lower, rel_tol=1e-6)


@pytest.mark.parametrize("name", sorted(schedules()))
def test_published_schedules(name):
    s = listed(name)
    _check(s.steps, s.lower, s.upper)
    c = s.certify()
    assert c.image[0][0] <= s.image()[0] <= c.image[0][1]
    assert c.image[1][0] <= s.image()[1] <= c.image[1][1]


@pytest.mark.parametrize("target", ["polar", "clip", "power(0.5)", "smooth_sign(0.1)"])
@pytest.mark.parametrize("divisor", [1.01, 1.25, 3.0])
def test_division_of_the_input(divisor, target):
    """The target at x, the composition at x / divisor, which is no double."""
    steps, lower, upper = [(1.5, -0.5), (1.875, -1.25, 0.375)], 0.1, 1.2
    c = certify(steps, lower, upper, target=target, divisor=divisor)
    with mpmath.workdps(DIGITS):
        grid = [lower + (mpmath.mpf(upper) - lower) * k / 2000 for k in range(2001)]
        values = [_composition(steps, x / mpmath.mpf(divisor)) for x in grid]
        off = max(abs(_target(target, x) - v) for x, v in zip(grid, values, strict=True))
        assert off <= c.upper
        assert c.lower <= off + mpmath.mpf(1e-3)  # between points of the grid
        assert c.image[0][0] <= min(values) <= c.image[0][1] + 1e-6
        assert c.image[1][0] - 1e-6 <= max(values) <= c.image[1][1]
    assert c.upper - c.lower <= 1e-7 * c.upper
    s = Schedule(steps=steps, lower=lower, upper=upper, input_safety=divisor, target=target)
    assert s.certify() == c
    assert s.error() == c.upper
    bare = certify(steps, lower, upper, target=target)
    assert dataclasses.replace(s, normalisation="none").certify() == bare


@pytest.mark.parametrize("divisor", [0.0, -1.0, math.inf, math.nan, "a"])
def test_a_divisor_that_is_none_is_refused(divisor):
    with pytest.raises(ValueError, match="divisor"):
        certify([(1.5, -0.5)], 0.1, 1.0, divisor=divisor)


@pytest.mark.parametrize("format", FORMATS)
def test_quantised_schedules(format):
    exact = _greedy(1e-3, [5, 3, 5, 5])
    steps = [tuple(round_number(c, FORMATS[format]) for c in step) for step in exact]
    c = certify(steps, 1e-3, 1.0)
    _check(steps, 1e-3, 1.0)
    assert (c == certify(exact, 1e-3, 1.0)) == (format == "float64")


def test_monotone_in_the_interval():
    steps = [JORDAN] * 5
    lowers = (0.0, 1e-30, 1e-8, 1e-4, 1e-3, 0.1, 0.3, 0.9)
    found = [certify(steps, l, 1.0) for l in lowers]
    for wide, narrow in itertools.pairwise(found):
        assert wide.upper >= narrow.lower
        assert wide.image[0][0] <= narrow.image[0][1]
        assert wide.image[1][1] >= narrow.image[1][0]


# Hostile input.

WILD = [
    [(1e300, -1e300, 1e308)] * 4,
    [(1e-300, 1e300, -1e-300, 1e300)] * 2,
    [(3.0, -4.0)] * 12,
    [(1e-320, -1e-320, 5e-324)],
    [pade(12)] * 5,
    [(1.0, *([0.0] * 30), -1e-300)],
    [(1.5, -0.5, 1e-250)],
]


@pytest.mark.thinned(4)
@pytest.mark.parametrize("target", ["polar", "clip", "power(0.5)", "power(-0.5)"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1e-30, 1.0), (1e-300, 1e300), (0.7, 0.7)])
@pytest.mark.parametrize("steps", WILD)
def test_wild_steps_give_ordered_bounds_and_no_nan(steps, interval, target, monkeypatch):
    monkeypatch.setattr(module, "PIECES", 60)  # honest, if wide
    c = certify(steps, *interval, target=target)
    assert 0 <= c.lower <= c.upper
    assert c.complement[0] <= c.complement[1]
    assert all(lo <= hi for lo, hi in c.image)
    with mpmath.workdps(700):
        for x in (*interval, 0.5 * interval[0] + 0.5 * interval[1]):
            x = mpmath.mpf(x)
            value = _composition([tuple(map(mpmath.mpf, s)) for s in steps], x)
            slack = mpmath.mpf(10) ** -600 * (1 + abs(value))
            assert c.image[0][0] - slack <= value <= c.image[1][1] + slack
            if x or not target.startswith("power(-"):
                assert abs(_target(target, x) - value) <= c.upper + slack


def test_overflow_is_infinite_only_where_doubles_end():
    c = certify([(1e200,), (1e-200,)], 0.5, 1e200)  # 1e400 on the way, and back
    assert math.isclose(c.upper, 1e200)
    c = certify([(1e200,), (1e200,)], 0.5, 1.0)
    assert (c.lower, c.upper) == (float(np.finfo(float).max), math.inf)
    assert c.complement == (-math.inf, -float(np.finfo(float).max))


def test_multiple_turning_points_need_no_care():
    """Pade steps: p' = c (1 - x**2)**q, and p = 1 at 1 exactly, wherever the interval ends."""
    for q in (1, 2, 5, 12):
        step = tuple(Fraction(c) for c in pade(q))
        for end in (1.0, 1.2, 1 + 2.0**-30):
            c = certify([pade(q)], 0.5, end)
            at = [abs(1 - _composition([step], Fraction(x))) for x in (0.5, 1.0, end)]
            assert c.lower <= max(at) <= c.upper
            assert _ulps(c.lower, c.upper) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, "at least one step"),
        ({"steps": [()]}, "at least one step"),
        ({"steps": [(math.nan,)]}, "finite coefficients"),
        ({"steps": [(math.inf, 1.0)]}, "finite coefficients"),
        ({"steps": 3}, "lists of coefficients"),
        ({"steps": [3.0]}, "lists of coefficients"),
        ({"lower": math.nan}, "lower <= upper"),
        ({"lower": 2.0}, "lower <= upper"),
        ({"upper": math.inf}, "lower <= upper"),
        ({"lower": None}, "interval of numbers"),
        ({"stride": 0}, "stride must be an integer"),
        ({"stride": 2.0}, "stride must be an integer"),
        ({"stride": True}, "stride must be an integer"),
        ({"target": "sine"}, "target"),
        ({"target": "clip", "lower": -0.5}, "0 <= lower"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"steps": [(1.5, -0.5)], "lower": 0.5, "upper": 1.0}
    arguments = {**good, **change}
    with pytest.raises(ValueError, match=message):
        certify(**arguments)


def test_steps_are_not_modified():
    steps = [[1.5, -0.5], np.array([1.5, -0.5])]
    certify(steps, 0.5, 1.0)
    assert steps[0] == [1.5, -0.5]
    assert steps[1].tolist() == [1.5, -0.5]


# Other targets.


@pytest.mark.parametrize(
    ("steps", "interval", "stride", "target", "error"),
    [
        ([(1.0,)], (0.0, 1.0), 2, "clip", 0.0),
        ([(1.0,)], (0.0, 3.0), 2, "clip", 2.0),
        ([(0.5,)], (0.0, 2.0), 2, "clip", 0.5),
        ([(1.0,)], (0.0, 2.0), 2, "power(1)", 0.0),
        ([(1.0,)], (0.0, 1.0), 2, "power(2)", 0.25),
        ([(1.0,)], (0.0, 1.0), 2, "power(0.5)", 0.25),
        ([(1.0,)], (0.25, 1.0), 2, "power(-0.5)", 1.75),
        ([(1.0,)], (0.0, 1.0), 2, "power(0)", 1.0),
        ([(1.0,)], (0.3, 0.3), 2, "clip", 0.0),
        ([(0.0,)], (0.0, 3.0), 2, "smooth_sign(4.0)", 0.6),
    ],
)
def test_known_answers_for_other_targets(steps, interval, stride, target, error):
    c = certify(steps, *interval, stride=stride, target=target)
    assert c.lower <= error <= c.upper
    assert c.width <= 1e-7 * error + 1e-30


@pytest.mark.parametrize("lower", [0.0, 1e-3])
@pytest.mark.parametrize("target", ["clip", "power(0.5)", "power(-0.3)", "smooth_sign(0.05)"])
def test_other_targets_lie_between_the_bounds(target, lower):
    if target == "power(-0.3)" and lower == 0:
        c = certify([JORDAN], 0.0, 1.0, target=target)
        assert (c.lower, c.upper, c.width) == (math.inf, math.inf, 0.0)
        return
    steps, upper = [(2.5, -2.0, 0.55), (1.5, -0.5)], 1.5
    c = certify(steps, lower, upper, target=target)
    assert c.width <= 1e-7 * c.upper
    seen = _largest_seen(steps, lower, upper, target=target, points=600)
    assert c.lower * (1 - 1e-7) <= seen <= c.upper
    assert c.complement[0] <= 1 - seen <= c.complement[1] + 1e-7 * c.upper
    one = certify(steps, lower, upper)
    assert c.image == one.image


@settings(max_examples=25)
@given(
    st.lists(st.lists(coefficients, min_size=1, max_size=4), min_size=1, max_size=2),
    st.floats(0.0, 1.0),
    st.floats(0.1, 1.0),
    st.integers(1, 4),
    st.sampled_from(("clip", "power(0.7)", "smooth_sign(0.1)")),
)
def test_random_compositions_against_other_targets(steps, lower, length, stride, target):
    upper = lower + length
    c = certify(steps, lower, upper, stride=stride, target=target)
    seen = _largest_seen(steps, lower, upper, stride=stride, target=target, points=300)
    assert seen <= c.upper * (1 + 1e-15)
    assume(seen < 1e3)
    assert c.lower <= seen * (1 + 1e-6)
    assert c.width <= 1e-6 * c.upper + 1e-30


def test_few_pieces_give_honest_wide_bounds(monkeypatch):
    sharp = certify([JORDAN] * 3, 0.0, 1.0, target="clip")
    monkeypatch.setattr(module, "PIECES", 5)
    rough = certify([JORDAN] * 3, 0.0, 1.0, target="clip")
    assert rough.width > 1e-3
    assert rough.lower <= sharp.upper
    assert sharp.lower <= rough.upper


# Least errors.

DEGREES = ([3], [5], [3, 5, 7], [5] * 5, [9, 5], [11, 3])


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("lower", [1e-3, 0.05, 0.5])
def test_greedy_schedules_attain_the_least_error(lower, degrees):
    least = least_error(lower, degrees)
    c = certify(design.greedy(lower, degrees).steps, lower, 1.0)
    assert least <= c.upper
    # Coefficients in double precision leave 1e-15 of error or so.
    assert c.upper - least <= 1e-10 * least + 1e-14
    assert c.complement[0] <= largest_complement(lower, degrees)


@pytest.mark.parametrize("degree", [3, 5, 9, 17, 25])
@pytest.mark.parametrize("lower", [1e-30, 1e-8, 1e-3, 0.5, 0.999, 0.999999])
def test_one_step_agrees_with_thirty_digits(lower, degree):
    best = design.best(degree, lower, digits=30)
    least, most = least_error(lower, [degree]), largest_complement(lower, [degree])
    slack = mpmath.mpf(10) ** -25
    assert least <= best.error * (1 + slack)
    assert least >= best.error * (1 - mpmath.mpf(10) ** -12)
    assert best.complement * (1 - slack) <= most <= best.complement * (1 + mpmath.mpf(10) ** -12)


@pytest.mark.parametrize("lower", [1e-30, 1e-3, 0.5, 1 - 1e-6, 1 - 1e-12, 1 - 2.0**-53])
def test_cubic_agrees_with_its_closed_form(lower):
    with mpmath.workdps(200):
        l = mpmath.mpf(lower)
        alpha = mpmath.sqrt(3 / (l**2 + l + 1))
        s = l * (l + 1) * alpha**3
        least = (2 - s) / (2 + s)
        assert least_error(lower, [3]) <= least <= least_error(lower, [3]) * (1 + 1e-13)
        most = largest_complement(lower, [3])
        assert most * (1 - 1e-13) <= 1 - least <= most


def test_tiny_lower_bounds_keep_the_complement():
    assert least_error(1e-30, [5] * 5) == math.nextafter(1, 0)
    assert math.isclose(
        largest_complement(1e-30, [5] * 5), 1e-30 * 4.257151136924763**5 * 2, rel_tol=1e-12
    )
    # Nearly attained: the steps reach a little above 2, and are scaled back by that.
    steps = [tuple(c * (1 - 1e-8) for c in step) for step in _greedy(1e-30, [5] * 5)]
    c = certify(steps, 1e-30, 1.0)
    ratio = c.image[0][1] / largest_complement(1e-30, [5] * 5)
    assert 1 - 1e-6 < ratio <= 1


@settings(max_examples=60)
@given(
    st.floats(-3, -0.2),
    st.lists(st.sampled_from((3, 5, 7)), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.floats(-6, -1),
)
def test_no_composition_is_better(exponent, degrees, seed, size):
    lower, rng = 10.0**exponent, np.random.default_rng(seed)
    steps = [
        tuple(np.array(step) * (1 + 10.0**size * rng.standard_normal(len(step))))
        for step in _greedy(lower, degrees)
    ]
    c = certify(steps, lower, 1.0)
    assert least_error(lower, degrees) <= c.upper
    assert c.complement[0] <= largest_complement(lower, degrees)


def test_least_error_is_monotone_and_scale_invariant():
    found = [least_error(l, [5, 3]) for l in (1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9)]
    assert found == sorted(found, reverse=True)
    assert least_error(1e-3, [5, 5]) == least_error(2.0**9 * 1e-3, [5, 5], upper=2.0**9)
    assert least_error(1e-3, [5, 5, 3]) < least_error(1e-3, [5, 5])
    assert least_error(1e-300, [3], upper=1e300) == math.nextafter(1, 0)
    assert least_error(1 - 2.0**-53, [25] * 3) == 0.0


@pytest.mark.parametrize("stride", [3, 4, 6])
def test_other_strides_agree_with_equioscillation(stride):
    """Two terms: c0 x + c1 x**(1+p) touches 1 + E inside and 1 - E at both ends."""
    lower, degree = 0.3, 1 + stride
    least = least_error(lower, [degree], stride=stride)
    # a (x - b x**(1+p)), equal at both ends, largest where 1 = (1+p) b x**p.
    b = (1 - lower) / (1 - lower**degree)
    top = (1 / (degree * b)) ** (1 / stride)
    high, low = top * (1 - 1 / degree), 1 - b
    assert math.isclose(least, (high - low) / (high + low), rel_tol=1e-12)
    step = tuple(2 / (high + low) * c for c in (1, -b))
    assert least <= certify([step], lower, 1.0, stride=stride).upper <= least + 1e-14


@pytest.mark.parametrize("degrees", [[3], [5], [9], [3, 5], [5, 5, 5]])
@pytest.mark.parametrize("bits", [3, 8, 16])
def test_least_errors_hold_at_any_precision(degrees, bits, monkeypatch):
    sharp = least_error(0.01, degrees), largest_complement(0.01, degrees)
    monkeypatch.setattr(bounds, "BITS", bits)
    rough = least_error(0.01, degrees), largest_complement(0.01, degrees)
    assert 0 <= rough[0] < sharp[0]
    assert rough[1] > sharp[1]


def test_any_reference_gives_a_bound(monkeypatch):
    """Bad extrema weaken the bound, and never break it."""
    sharp = least_error(1e-2, [7])
    spoiled = design.best(7, 1e-2)
    for extrema in ([0.01, 0.3, 0.6, 0.7, 1.0], [0.01, 0.6, 0.3, 0.9, 1.0], [0.01] * 4 + [1.0]):
        monkeypatch.setattr(
            bounds, "ideal", lambda *_, x=extrema, **__: spoiled._replace(extrema=tuple(x))
        )
        assert 0 < least_error(1e-2, [7]) < sharp


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, [3]), "0 < lower < upper"),
        ((1.0, [3]), "0 < lower < upper"),
        ((math.nan, [3]), "0 < lower < upper"),
        ((0.1, []), "degrees"),
        ((0.1, 5), "degrees"),
        ((0.1, [4]), "odd"),
        ((0.1, [1]), "odd"),
    ],
)
@pytest.mark.parametrize("function", [least_error, largest_complement])
def test_bad_requests_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_certificates_are_plain_values():
    c = certify([(1.5, -0.5)], 0.5, 1.0)
    assert c == Certificate(c.lower, c.upper, c.complement, c.image)
    assert hash(c) == hash(certify([(1.5, -0.5)], 0.5, 1.0))
    with pytest.raises(AttributeError):
        c.lower = 0.0
