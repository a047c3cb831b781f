"""Certificates and least errors, against exact fractions, mpmath and closed forms."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import verbs
from flint import arb, ctx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polarlib import Schedule, design
from polarlib._schedules import enclosures
from polarlib._schedules.certify import Certificate, certify
from polarlib._schedules.targets import TARGETS, parse_target, target_value
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


def _image_by_roots(steps, lower, upper):
    """Image from all complex roots of the derivatives (leading coefficients nonzero)."""
    with mpmath.workdps(DIGITS):
        lo, hi = mpmath.mpf(lower), mpmath.mpf(upper)
        for step in steps:
            slope = [(2 * i + 1) * mpmath.mpf(c) for i, c in enumerate(step)]
            roots = []
            if len(slope) > 1:
                roots = verbs.polynomial_roots(slope)
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


# From balls to doubles, and the zeros of derivatives.

ENDS = st.builds(lambda m, e: (m, e), st.integers(-(2**70), 2**70), st.integers(-1200, 1200))


@settings(max_examples=300)
@given(ENDS, ENDS)
def test_doubles_around_a_ball_are_the_narrowest(a, b):
    with enclosures.working_precision(200):
        low, high = enclosures.floats(arb(a))
        both = enclosures.floats(arb(a).union(arb(b)))
    (m, e), (n, f) = a, b
    value, other = m * Fraction(2) ** e, n * Fraction(2) ** f
    assert low == -math.inf or Fraction(low) <= value
    assert high == math.inf or value <= Fraction(high)
    assert _ulps(low, high) <= 1
    assert both[0] <= min(float_or_infinite(value), float_or_infinite(other))
    assert both[1] >= max(float_or_infinite(value), float_or_infinite(other))


def float_or_infinite(value):
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def test_conversions_at_the_ends_of_the_doubles():
    largest, least = float(np.finfo(float).max), 5e-324
    for ball, expected in {
        (1, 1024): (largest, math.inf),
        (-1, 1024): (-math.inf, -largest),
        (1, -1075): (0.0, least),
        (-3, -1075): (-2 * least, -least),
        (1, -(10**30)): (0.0, least),
        (1, 10**30): (largest, math.inf),
    }.items():
        assert enclosures.floats(arb(ball)) == expected
    assert math.copysign(1, enclosures.floats(arb(0))[1]) == 1
    for x in (least, -least, largest, 1e-310, 0.1, -0.0):
        assert enclosures.floats(arb(x)) == (x, x)
    for x in (arb("nan"), arb("inf"), arb("+/- inf")):
        assert enclosures.floats(x) == (-math.inf, math.inf)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-4, 4).filter(lambda c: abs(c) > 1e-3), min_size=2, max_size=6),
    st.integers(1, 4),
)
def test_turning_points_are_all_found_and_nothing_else(step, stride):
    found = enclosures._turning_points(tuple(step), stride, 150)
    with mpmath.workdps(DIGITS):
        slope = [(1 + stride * i) * mpmath.mpf(c) for i, c in enumerate(step)]
        roots = verbs.polynomial_roots(slope)
        real = [mpmath.re(y) for y in roots if abs(mpmath.im(y)) < 1e-20 * abs(y)]
        exact = [
            sign * mpmath.root(abs(y), stride) * (-1 if y < 0 else 1)
            for y in real
            if stride % 2 or y > 0
            for sign in ((1,) if stride % 2 else (1, -1))
        ]
        assert len(found) == len(exact)
        for t, x in zip(sorted(map(float, found)), sorted(exact), strict=True):
            assert abs(t - x) <= 1e-15 * abs(x)
        for t in found:
            low, high = (m * mpmath.mpf(2) ** e for m, e in _man_exp(t.lower(), t.upper()))
            assert any(low - 1e-40 <= x <= high + 1e-40 for x in exact)


def _man_exp(*balls):
    return [tuple(map(int, ball.man_exp())) for ball in balls]


def test_multiple_zeros_of_a_derivative_are_exact():
    for q in (1, 2, 5, 12):
        points = enclosures._turning_points(tuple(pade(q)), 2, 128)
        # Rounded coefficients have other zeros than pade's.
        if all(Fraction(c) == v for c, v in zip(pade(q), _pade(q), strict=True)):
            assert sorted(map(float, points)) == [-1.0, 1.0]
            assert all(t.is_exact() for t in points)


def _pade(q):
    """Coefficients of x sum_k binom(2k, k) (1 - x**2)**k / 4**k as fractions."""
    total = [Fraction(0)] * (q + 1)
    for k in range(q + 1):
        for i in range(k + 1):
            weight = Fraction(math.comb(2 * k, k), 4**k) * math.comb(k, i)
            total[i] += weight * (-1) ** i
    return total


# The process: flint has one precision for all threads.


def test_precision_of_flint_is_restored():
    before = ctx.prec
    certify([JORDAN] * 3, 0.1, 1.0, target="clip")
    assert ctx.prec == before
    with enclosures.working_precision(77):
        assert ctx.prec == 77
        with pytest.raises(ValueError, match="negative"), enclosures.working_precision(99):
            math.isqrt(-ctx.prec)
        assert ctx.prec == 77
    assert ctx.prec == before


def test_threads_do_not_change_each_other():
    """Certificates that need 128, 256 and more bits at the same time."""
    cases = [
        {"steps": [JORDAN] * 5, "lower": 1e-3, "upper": 1.0},
        {"steps": [pade(2)] * 12, "lower": 0.9, "upper": 1.0},
        {"steps": [JORDAN] * 2, "lower": 0.1, "upper": 1.0, "target": "power(0.5)"},
        {"steps": [(1e-300, 1e300)] * 2, "lower": 1e-300, "upper": 1.0},
    ]
    alone, before = [certify(**case) for case in cases], ctx.prec
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda case: certify(**case), cases * 16))
    assert together == alone * 16
    assert ctx.prec == before


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
    found = _image(steps, lower, upper, bits)
    with mpmath.workdps(DIGITS):
        exact = _image_by_roots(steps, lower, upper)
        for (low, high), value in zip(found, exact, strict=True):
            slack = mpmath.mpf(10) ** -40 * (1 + abs(value))
            assert low - slack <= value <= high + slack


def _image(steps, lower, upper, bits):
    """Ends of both balls as mpmath numbers, computed with few bits and converted with many."""
    with enclosures.working_precision(bits):
        balls = enclosures.image([tuple(s) for s in steps], arb(lower), arb(upper), 2)
    with enclosures.working_precision(200), mpmath.workdps(DIGITS):
        return [
            [m * mpmath.mpf(2) ** e for m, e in _man_exp(ball.lower(), ball.upper())]
            for ball in balls
        ]


@pytest.mark.parametrize("bits", [10, 11, 12])
def test_a_turning_point_that_may_be_outside_is_not_sure(bits):
    """1000.1 - 999.6 = 0.5 is known badly, and the next step turns at sqrt(2 / 3), above it."""
    steps = [(1000.1, -999.6), (2.0, -1.0)]
    _, (low, high) = _image(steps, 1.0, 1.0, bits)
    with mpmath.workdps(DIGITS):
        value = _composition([tuple(map(mpmath.mpf, step)) for step in steps], mpmath.mpf(1))
    assert low <= value <= high


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


@pytest.mark.thinned(3)
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
    monkeypatch.setattr(enclosures, "PIECES", 60)  # honest, if wide
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
    monkeypatch.setattr(enclosures, "PIECES", 5)
    rough = certify([JORDAN] * 3, 0.0, 1.0, target="clip")
    assert rough.width > 1e-3
    assert rough.lower <= sharp.upper
    assert sharp.lower <= rough.upper


PARAMETERS = {"power": (0.5, -0.3, 1.0, 2.5, 0.0), "smooth_sign": (0.05, 4.0, 1e-12)}


@pytest.mark.parametrize("kind", TARGETS)
@settings(max_examples=60)
@given(
    st.floats(0, 3),
    st.sampled_from((0.0, 1e-9, 1e-3, 0.7, 3.0)),
    st.sampled_from((53, 128)),
)
def test_every_target_is_enclosed_with_its_derivative(kind, a, length, bits):
    """What certificates rest on, for every entry of the table, against mpmath's derivative."""
    b = a + length
    for parameter in PARAMETERS.get(kind, (0.0,)):
        with enclosures.working_precision(bits):
            value, slope = TARGETS[kind].enclose(arb(a), arb(b), parameter)
        with mpmath.workdps(DIGITS), enclosures.working_precision(300):
            for k in range(9):
                x = a + (mpmath.mpf(b) - a) * k / 8
                if x == 0 and kind == "power":
                    continue
                assert _contains(value, TARGETS[kind].value(x, parameter), 1e-50)
                if x and x not in TARGETS[kind].corners:
                    step = x * mpmath.mpf(10) ** -20
                    f = [TARGETS[kind].value(x + h, parameter) for h in (-step, step)]
                    assert _contains(slope, (f[1] - f[0]) / (2 * step), 1e-15)
            for corner in TARGETS[kind].corners:
                assert kind == "clip"
                if a <= corner <= b and a < b:
                    assert all(_contains(slope, v, 0) for v in (0, 1)) or corner in (a, b)


def _contains(ball, value, tolerance):
    if not ball.is_finite():
        return True
    low, high = (m * mpmath.mpf(2) ** e for m, e in _man_exp(ball.lower(), ball.upper()))
    slack = tolerance * (abs(value) + mpmath.mpf(10) ** -30)
    return low - slack <= value <= high + slack


def test_every_target_has_parameters_in_the_test_above():
    assert set(PARAMETERS) == {kind for kind, target in TARGETS.items() if target.has_parameter}


@pytest.mark.parametrize("target", ["hump(1.0)", "wave"])
def test_a_target_of_any_shape_is_certified(target, monkeypatch):
    """Neither values nor derivatives need be monotone: only enclosures are used."""
    square = lambda a, b: a.union(b) ** 2  # noqa: E731
    hump = dataclasses.replace(
        TARGETS["power"],
        value=lambda x, p: p * x / (1 + 400 * (x - 0.6) ** 2),
        enclose=lambda a, b, p: (
            p * a.union(b) / (1 + 400 * square(a - arb("0.6"), b - arb("0.6"))),
            p / (1 + 400 * square(a - arb("0.6"), b - arb("0.6")))
            - 800
            * p
            * a.union(b)
            * (a.union(b) - arb("0.6"))
            / (1 + 400 * square(a - arb("0.6"), b - arb("0.6"))) ** 2,
        ),
    )
    wave = dataclasses.replace(
        TARGETS["polar"],
        value=lambda x, _: np.sin(40 * np.float64(x)),
        enclose=lambda a, b, _: ((40 * a.union(b)).sin(), 40 * (40 * a.union(b)).cos()),
    )
    monkeypatch.setitem(TARGETS, "hump", hump)
    monkeypatch.setitem(TARGETS, "wave", wave)
    steps, x = [(1.5, -0.5)], np.linspace(0.0, 1.0, 200001)
    c = certify(steps, 0.0, 1.0, target=target)
    kind, parameter = parse_target(target)
    seen = np.abs(TARGETS[kind].value(x, parameter) - _composition(steps, x)).max()
    assert c.lower * (1 - 1e-8) <= seen <= c.upper * (1 + 1e-15)
    assert c.width <= 1e-7 * c.upper
    assert abs(target_value(target, 0.5) - TARGETS[kind].value(0.5, parameter)) == 0


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
