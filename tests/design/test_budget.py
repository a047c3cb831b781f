"""The search for degrees, against all sequences, and against rounding as it happens."""

from __future__ import annotations

import functools
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarlib import Schedule, design, orthogonalize
from polarlib._schedules.images import odd_value
from polarlib._schedules.products import product_counts
from polarlib.arrays.formats import FORMATS, format_of
from polarlib.design import cost_tables, greedy, restarts
from polarlib.design.budget import (
    WORTH,
    WORTH_ROUNDINGS,
    _ratio,
    best_degrees,
    budget,
    frontier,
    schedule_of,
)
from polarlib.design.prices import costs
from polarlib.design.remez import ideal
from polarlib.design.rounding import (
    Rounding,
    first_state,
    last_step,
    next_step,
    rho_without_rounding,
)
from polarlib.testing import spectrum, with_singular_values

PRODUCTS = {3: 2, 5: 3, 7: 4, 9: 4, 11: 5, 13: 5}
NARROW_FORMATS = ("bfloat16", "float16", "tf32", "float8_e4m3", "float8_e5m2")


@functools.cache
def _next_rho(degree, rho):
    return 1.0 if 1 - rho < 1e-9 else ideal(degree, rho).rho


def _all(rho, left, prices, once, follow, sequence=()):
    """Every sequence of degrees within a budget, as (cost, rho or state, sequence)."""
    for d in prices:
        longer = (*sequence, d)
        cost = math.fsum((once, *(prices[k] for k in longer)))
        if cost <= left:
            end = follow(d, rho)
            yield cost, end, longer
            yield from _all(end, left, prices, once, follow, longer)


def _brute_force(lower, matmuls, prices, once=0.0):
    kept, found = 0.0, []
    for cost, rho, degrees in sorted(
        _all(lower, matmuls, prices, once, _next_rho),
        key=lambda t: (t[0], -t[1], len(t[2]), t[2]),
    ):
        if rho > kept * (1 + WORTH):
            kept = rho
            found.append((cost, rho, degrees))
    return found


def _same(found, brute):
    # Below that, sequences differ by rounding only.
    brute = [b for b in brute if b[1] < 1 - 1e-13]
    found = [c for c in found if c.error > 5e-14]
    assert [(c.cost, c.degrees) for c in found] == [(cost, d) for cost, _, d in brute]
    for c, (_, rho, _) in zip(found, brute, strict=True):
        assert abs(c.error - (1 - rho) / (1 + rho)) < 1e-15


@pytest.mark.parametrize("lower", [0.9, 0.1, 1e-3, 1e-7, 1e-30])
@pytest.mark.parametrize(("degrees", "matmuls"), [((3, 5, 9), 13), ((3, 5, 7, 11), 10)])
def test_equals_all_sequences(lower, degrees, matmuls):
    prices = {d: float(PRODUCTS[d]) for d in degrees}
    _same(frontier(lower, matmuls, degrees=degrees), _brute_force(lower, matmuls, prices))


@pytest.mark.parametrize("lower", [0.3, 1e-3, 1e-5])
@pytest.mark.parametrize(
    ("cost", "matmuls"),
    [
        ({3: 0.7, 5: 1.1, 9: 1.3}, 4.4),
        ({3: 0.1, 5: 0.2, 9: 0.3}, 0.6),  # sums that are exact only when rounded once
        (costs((512, 128), symmetric=0.5), 9.0),
        (costs((4096, 1024), form="gram"), 6.5),
        (costs((300, 300), form="gram", symmetric=0.5), 8.0),
        (math.sqrt, 11.0),
    ],
)
def test_equals_all_sequences_for_other_costs(lower, cost, matmuls):
    table = dict(cost) if isinstance(cost, dict) else {d: cost(d) for d in (3, 5, 9)}
    prices = {d: table[d] for d in (3, 5, 9)}
    brute = _brute_force(lower, matmuls, prices, table.get(0, 0.0))
    found = frontier(lower, matmuls, cost=cost)
    assert len({c.cost for c in found}) == len(found) > 3
    _same(found, brute)


def _ends_in_a_format(lower, matmuls, prices, precision):
    """Cost, error and degrees of every sequence with a last step, whatever leads there."""
    f = Rounding.of(format_of(precision))
    start = first_state(lower, f)
    before = [(0.0, start, ())]
    before += _all(
        start, matmuls - min(prices.values()), prices, 0.0, lambda d, s: next_step(s, d, f)
    )
    for cost, state, degrees in before:
        for d, price in prices.items():
            if cost + price <= matmuls and state.lower > 0:
                done = last_step(state, d, f)[1]
                if done.lower > 0:
                    rho = done.rho_reached
                    yield cost + price, (1 - rho) / (1 + rho), (*degrees, d)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("lower", [0.999, 0.1, 1e-3, 1e-10])
def test_equals_all_sequences_in_a_format(precision, lower):
    """For every cost it has what no sequence betters by more than the search for a step misses."""
    prices = {d: float(PRODUCTS[d]) for d in (3, 5, 9)}
    every = list(_ends_in_a_format(lower, 12, prices, precision))
    found = frontier(lower, 12, precision=precision)
    for c in found:
        assert any(e[0] == c.cost and e[2] == c.degrees and e[1] == c.error for e in every)
    u = format_of(precision).unit_roundoff
    for cost in sorted({e[0] for e in every}):
        least = min(e[1] for e in every if e[0] <= cost)
        mine = min(c.error for c in found if c.cost <= cost)
        quotients = [(1 - error) / (1 + error) for error in (mine, least)]
        # Rounding takes up to half of what is reached where that is below it, at every end of its
        # own: there, and only there, what was beaten before may end better.
        short = 1e-3 + WORTH_ROUNDINGS * u if quotients[1] > 4 * u else 0.5
        assert quotients[0] >= quotients[1] * (1 - short)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("degree", [3, 5, 7, 9, 11])
def test_why_the_search_is_exact(precision, degree):
    """A larger rho gives a larger rho, and none as large as without rounding."""
    f = Rounding.of(format_of(precision))
    # As far as a step is the best one: its room and cushion are found to some digits, in 8 bits
    # with a local optimum now and then.
    missed = 2e-3 if f.unit < 0.1 else 0.02 if degree <= 5 else 0.12
    states = []
    for rho in (*np.geomspace(1e-30, 1e-3, 10), *np.linspace(1e-2, 1, 12)[:-1], 1 - 1e-12):
        before = first_state(rho, f)
        states.append(next_step(before, degree, f))
        assert states[-1].rho <= rho_without_rounding(before, degree)
    assert all(b.rho >= a.rho * (1 - missed) for a, b in itertools.pairwise(states))
    assert all(s.lower > 0 for s in states)


@pytest.mark.parametrize("degree", [3, 5, 7, 9, 11])
def test_why_the_search_is_exact_without_a_format(degree):
    """A larger rho gives a larger rho."""
    ends = (*np.geomspace(1e-30, 1e-3, 10), *np.linspace(1e-2, 1, 25)[:-1], 1 - 1e-12)
    ratios = [_ratio(degree, rho) for rho in ends]
    assert all(b >= a * (1 - 1e-15) and a > 0 for a, b in itertools.pairwise(ratios))


def test_known_values():
    s = budget(1e-3, 17, degrees=(3, 5))
    assert [2 * len(step) - 1 for step in s.steps] == [3, 5, 5, 5, 5, 5]
    assert s.matmuls == 17
    assert math.isclose(s.error(), 0.0088, abs_tol=5e-5)
    quintics = budget(1e-3, 17, degrees=[5])
    assert quintics.matmuls == 15  # the two that are left buy no quintic
    assert math.isclose(quintics.error(), 0.1134, abs_tol=5e-5)
    assert quintics.steps == greedy(1e-3, [5] * 5).steps


@pytest.mark.parametrize("lower", [0.5, 1e-3, 1e-12, 1e-30])
def test_schedule_is_the_greedy_one_of_the_last_entry(lower):
    last = frontier(lower, 20)[-1]
    assert last.degrees == best_degrees(lower, 20)
    s = budget(lower, 20)
    assert s.steps == greedy(lower, last.degrees).steps
    assert s.matmuls == last.cost
    # The steps are doubles: their rounding grows from step to step.
    assert math.isclose(s.error(), last.error, rel_tol=1e-4, abs_tol=1e-13)


def test_scale_invariance():
    assert best_degrees(7e-3, 16, upper=7.0) == best_degrees(1e-3, 16)
    for precision in (None, "bfloat16"):
        s = budget(1e-3, 16, precision=precision)
        t = budget(1e-3 * 2.0**40, 16, upper=2.0**40, precision=precision)
        assert t.upper == 2.0**40
        for x in (1e-3, 0.1, 1.0):
            assert math.isclose(t(x * 2.0**40), s(x), rel_tol=1e-12)


def test_more_products_than_needed():
    """Once the error is that of rounding, the cheaper sequence is taken."""
    s = budget(0.5, 200)
    assert s.matmuls < 16
    assert s.error() < 1e-15
    low = budget(0.5, 200, precision="bfloat16")
    assert low.matmuls < s.matmuls
    assert low.error() < 2.0**-8


@settings(max_examples=10)
@given(
    st.floats(-12, -0.05),
    st.floats(2, 18),
    st.floats(0, 4),
    st.sampled_from((None, "float32", *NARROW_FORMATS)),
)
def test_monotone(exponent, matmuls, more, precision):
    lower = 10.0**exponent
    found = frontier(lower, matmuls, precision=precision)
    errors = [c.error for c in found]
    assert all(c.cost <= matmuls for c in found)
    assert errors == sorted(errors, reverse=True)
    # A smaller budget gives the beginning of the list.
    assert frontier(lower, matmuls + more, precision=precision)[: len(found)] == found
    # A shorter interval is no harder, but for what is not worth a product.
    u = 0.0 if precision is None else format_of(precision).unit_roundoff
    easier = frontier(lower ** (1 / (1 + more)), matmuls, precision=precision)
    assert easier[-1].error <= errors[-1] + 4 * u + 1e-15


def test_costs_are_the_engines():
    m, n = 700, 200
    for degrees in [(3,), (5, 9), (3, 5, 5, 9, 13, 17)]:
        steps = [(1.0,) * (d // 2 + 1) for d in degrees]
        for form in ("plain", "gram"):
            large, small = product_counts(steps, form=form)
            # Half of the large ones, and all of the small ones, have symmetric results.
            for symmetric in (1.0, 0.5, 0.7):
                model = costs((m, n), form=form, symmetric=symmetric)
                assert model == costs((n, m), form=form, symmetric=symmetric)
                assert math.isclose(
                    model[0] + sum(model[d] for d in degrees),
                    large * (1 + symmetric) / 2 + small * symmetric * n / m,
                    rel_tol=1e-14,
                )
    square = costs()
    assert all(square[d] == c for d, c in PRODUCTS.items())
    assert square[17] == 6


def test_tall_matrices_prefer_higher_degrees():
    """Only the two large products of a step count there, whatever its degree."""
    model = costs((6400, 100))
    assert set(best_degrees(1e-3, 8.6, cost=model)) == {9}
    assert set(best_degrees(1e-3, 10.4, cost=model, degrees=(3, 5))) == {5}
    assert set(best_degrees(1e-3, 17, degrees=(3, 5))) == {3, 5}


def test_no_input_is_changed():
    table, degrees = {9: 4.0, 3: 2.0, 5: 3.0}, [9, 3, 5, 3]
    budget(0.1, 8, cost=table, degrees=degrees)
    assert list(table.items()) == [(9, 4.0), (3, 2.0), (5, 3.0)]
    assert degrees == [9, 3, 5, 3]
    assert best_degrees(0.1, 8, degrees=iter(degrees)) == best_degrees(0.1, np.int64(8))


# -- number formats --------------------------------------------------------------------------


def test_wide_steps_of_high_degree_are_avoided_or_refused():
    for precision in ("bfloat16", "float16"):
        s = budget(1e-3, 20, precision=precision, degrees=(3, 5, 7, 9, 11))
        assert len(s.steps[0]) <= 3
    assert 9 not in best_degrees(1e-3, 20, precision="bfloat16")
    assert 9 in best_degrees(1e-3, 17, precision="float16")
    assert best_degrees(1e-3, 20)[0] == 9
    for lower in (0.9, 1e-3):
        with pytest.raises(ValueError, match=r"float8_e5m2 leaves no step .* lower degrees"):
            budget(lower, 12, precision="float8_e5m2", degrees=[17])


@pytest.mark.parametrize(
    ("precision", "lower", "degree"),
    [("bfloat16", 1e-3, 9), ("float8_e5m2", 0.9, 13), ("float8_e4m3", 0.1, 9)],
)
def test_steps_of_high_degree_alone_keep_their_promise(precision, lower, degree):
    """Worse than with lower degrees, and on matrices no worse than it says."""
    found = frontier(lower, 20, precision=precision, degrees=(degree,))[-1]
    assert found.error > 1.2 * frontier(lower, 20, precision=precision)[-1].error
    s = budget(lower, 20, precision=precision, degrees=(degree,))
    u = format_of(precision).unit_roundoff
    for values in (np.geomspace(1, lower, 64), np.ones(64), np.linspace(1, 0.98, 64)):
        a = with_singular_values(values, 64, 64, seed=1, dtype="float32")
        q = orthogonalize(a, schedule=s, precision=precision, form="plain", normalisation="none")
        v, _, w = np.linalg.svd(a.astype("f8"))
        aligned = np.einsum("ik,ij,kj->k", v, q.astype("f8"), w)
        assert aligned.min() > 0  # no sign is lost
        reached = np.linalg.svd(q.astype("f8"), compute_uv=False)
        # Rounding of the input moves the smallest ones.
        assert np.abs(1 - reached).max() < 2 * found.error + u


def test_wide_formats_approach_exact_arithmetic():
    for lower, matmuls in ((0.1, 12), (1e-3, 16), (1e-5, 14)):
        exact = frontier(lower, matmuls)[-1]
        double = frontier(lower, matmuls, precision="float64")[-1]
        assert double.degrees == exact.degrees
        assert math.isclose(double.error, exact.error, rel_tol=1e-9, abs_tol=1e-13)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("lower", [0.9, 0.1, 1e-3, 1e-6, 1e-12])
def test_schedules_for_a_format_leave_room_for_its_rounding(precision, lower):
    f = Rounding.of(format_of(precision))
    for matmuls in (2, 5, 9, 14, 20):
        last = frontier(lower, matmuls, precision=precision)[-1]
        s = budget(lower, matmuls, precision=precision)
        assert s.is_safe_in(precision)
        assert s.matmuls == last.cost
        assert tuple(2 * len(step) - 1 for step in s.steps) == last.degrees
        assert s.error() <= last.error + 1e-10
        # Each step maps the image of the one before, enlarged by half a rounding at least, into
        # that of the next, but the last, after which nothing diverges.
        low, top = lower, f.upper
        for step in s.steps[:-1]:
            room = Schedule(steps=[step], lower=low, upper=top).image()
            low, top = room[0] * (1 - f.unit / 2), room[1] * (1 + f.unit / 2)
            assert 0 < low < top < 3
        image = Schedule(steps=s.steps[-1:], lower=low, upper=top).image()
        assert max(1 - image[0], image[1] - 1) < s.error() + 0.2 * (1 - s.error()) + 8 * f.unit


@pytest.mark.parametrize("precision", FORMATS)
def test_it_is_for_precision(precision):
    for lower, matmuls, degrees in ((0.1, 6, (3, 5, 9)), (1e-3, 15, (3, 5, 7, 9))):
        same = design.for_precision(precision, lower, matmuls=matmuls, degrees=degrees)
        assert budget(lower, matmuls, degrees=degrees, precision=precision) == same
    scaled = budget(2 * lower, matmuls, upper=2.0, degrees=degrees, precision=precision)
    assert scaled(2.0) == same(1.0)


def test_half_precision_gains_from_degrees_7_and_9():
    """15 products: the better of both models before had .0912, of degrees 3 and 5 .1147."""
    assert budget(1e-3, 15, precision="float16", degrees=(3, 5, 7, 9)).error() < 0.0913


def _hostile(schedule, n):
    """Singular values at the extrema of all partial compositions, where rounding pushes most."""
    x = np.linspace(0.02, 1, 20001)
    y = x
    yield np.ones(n)
    yield spectrum("rank one", n)
    yield spectrum("log-uniform 1e-3", n)
    for step in schedule.steps:
        y = odd_value(step, y)
        for at in (np.argmax(y), np.argmin(y)):
            yield np.full(n, x[at])
            yield np.r_[np.full(n // 2, x[at]), np.zeros(n - n // 2)]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("precision", [*NARROW_FORMATS, "float32"])
@pytest.mark.parametrize(
    ("lower", "matmuls", "degrees"),
    [(1e-3, 15, (3, 5, 9)), (1e-2, 11, (3, 5, 9)), (1e-3, 17, (5,)), (1e-2, 13, (3, 9))],
)
def test_no_hostile_matrix_blows_up(precision, lower, matmuls, degrees):
    s = budget(lower, matmuls, precision=precision, degrees=degrees)
    last = s.steps[-1]
    top = s.truncate(len(s) - 1).image()[1]
    terms = sum(abs(c) * top ** (2 * i + 1) for i, c in enumerate(last))
    wide = 20 if precision == "float32" else 1
    noise = format_of(precision).unit_roundoff * (2 + 0.36 * terms) * wide
    for values in _hostile(s, 32):
        for m in (32, 80):
            a = with_singular_values(np.sort(values)[::-1], m, 32, seed=1, dtype="float32")
            q = orthogonalize(
                a, schedule=s, precision=precision, form="plain", normalisation="none"
            )
            assert np.linalg.norm(q.astype("f8"), 2) <= s.image()[1] + 1.5 * noise
            # No singular vector of a large singular value is turned.
            u, x, v = np.linalg.svd(a.astype("f8"), full_matrices=False)
            aligned = np.einsum("ik,ij,kj->k", u, q.astype("f8"), v)
            assert aligned[x > 0.5 * x[0]].min() > (0.5 * s.image()[0] if lower < x[-1] else 0)


def test_the_unguarded_composition_does_blow_up():
    """The same degrees without room for rounding: what the test above would see."""
    s = greedy(1e-2, best_degrees(1e-2, 12))
    a = with_singular_values(np.ones(32), 32, 32, seed=1, dtype="float32")
    with pytest.warns(match="bfloat16"):
        q = orthogonalize(a, schedule=s, precision="bfloat16", form="plain", normalisation="none")
    assert not np.linalg.norm(np.nan_to_num(q, nan=1e9), 2) < 2


def test_former_name_of_a_degree_sequence():
    with pytest.warns(DeprecationWarning, match=r"design\.Choice is now polarlib\.design\.Degree"):
        assert design.Choice is design.DegreeSequence


# -- bad requests ----------------------------------------------------------------------------


@pytest.mark.parametrize("search", [budget, best_degrees, frontier])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lower": 0.0}, "0 < lower < upper"),
        ({"lower": -1.0}, "0 < lower < upper"),
        ({"lower": 1.0}, "0 < lower < upper"),
        ({"lower": math.nan}, "0 < lower < upper"),
        ({"upper": 1e-4}, "0 < lower < upper"),
        ({"matmuls": 1}, "matmuls=1 is below the cheapest step, which costs 2"),
        ({"matmuls": 2, "degrees": (5, 9)}, "below the cheapest step, which costs 3"),
        ({"matmuls": 0}, "number above 0, got 0"),
        ({"matmuls": -3}, "number above 0"),
        ({"matmuls": math.nan}, "number above 0"),
        ({"matmuls": math.inf}, "number above 0"),
        ({"matmuls": "15"}, "number above 0"),
        ({"matmuls": True}, "number above 0"),
        ({"matmuls": None}, "number above 0"),
        ({"degrees": ()}, "list of odd degrees"),
        ({"degrees": 5}, "list of odd degrees to choose from, got 5"),
        ({"degrees": "35"}, "list of odd degrees"),
        ({"degrees": None}, "list of odd degrees"),
        ({"degrees": (3, 4)}, "odd integer of at least 3, got 4"),
        ({"degrees": (1,)}, "odd integer of at least 3, got 1"),
        ({"degrees": (3.0,)}, "odd integer of at least 3"),
        ({"cost": {3: 2.0, 5: 3.0}}, "no entry for degree 9"),
        ({"cost": {3: 2.0, 5: 0.0, 9: 4.0}}, "degree 5 must be a number above 0, got 0"),
        ({"cost": {3: 2.0, 5: math.nan, 9: 4.0}}, "degree 5 must be a number above 0"),
        ({"cost": lambda d: -d}, "degree 3 must be a number above 0, got -3"),
        ({"cost": lambda d: "much"}, "degree 3 must be a number above 0, got 'much'"),
        ({"cost": {0: -2.0, 3: 2.0, 5: 3.0, 9: 4.0}}, "must be positive"),
        ({"cost": {0: math.nan, 3: 2.0, 5: 3.0, 9: 4.0}}, "must be a finite number"),
        ({"cost": 3.0}, "mapping of degrees to numbers"),
        ({"precision": "bf16"}, "unknown number format 'bf16'; did you mean 'bfloat16'"),
        ({"precision": 16}, "unknown number format"),
    ],
)
def test_bad_requests(search, arguments, message):
    with pytest.raises(ValueError, match=message):
        search(**{"lower": 1e-3, "matmuls": 12, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": 5}, "two integers of at least 1|an integer of at least 1, got 5"),
        ({"shape": (5,)}, "two integers of at least 1|an integer of at least 1"),
        ({"shape": (5, 0)}, "two integers of at least 1|an integer of at least 1"),
        ({"shape": (5, 2.5)}, "two integers of at least 1|an integer of at least 1"),
        ({"form": "grams"}, "form must be 'plain' or 'gram', got 'grams'"),
        ({"symmetric": 0.0}, "above 0 and at most 1"),
        ({"symmetric": 2}, "above 0 and at most 1"),
        ({"symmetric": math.nan}, "above 0 and at most 1"),
        ({"symmetric": True}, "above 0 and at most 1"),
        ({"degrees": (4,)}, "odd integer of at least 3"),
    ],
)
def test_bad_cost_models(arguments, message):
    with pytest.raises(ValueError, match=message):
        costs(**arguments)


# -- the Gram form ---------------------------------------------------------------------------


def _gram_cost(s, shape, precision):
    """Products of the engine for the schedule with the restarts that it is run with."""
    large, small = product_counts(s.steps, form="gram", restarts=restarts(s, precision))
    return large + small * min(shape) / max(shape)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("precision", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(300, 300), (128, 512), (4096, 256)])
def test_gram_form_counts_the_restarts_of_its_format(shape, precision):
    for matmuls in (5, 8.5, 13):
        s = budget(1e-3, matmuls, form="gram", shape=shape, precision=precision)
        found = frontier(1e-3, matmuls, form="gram", shape=shape, precision=precision)
        cost = _gram_cost(s, shape, precision or "float32")
        assert cost == pytest.approx(found[-1].cost, rel=1e-12)
        assert cost <= matmuls
        assert found[-1].degrees == tuple(2 * len(step) - 1 for step in s.steps)
        for cheap, dear in itertools.pairwise(found):
            assert cheap.cost <= dear.cost
            assert cheap.error > dear.error


def test_gram_form_without_its_restarts_is_overspent():
    """The same costs as a plain sum buy steps that the budget does not pay for."""
    shape, precision, matmuls = (4096, 1024), "bfloat16", 7
    table = costs(shape, form="gram")
    summed = budget(1e-3, matmuls, cost=table, precision=precision)
    assert _gram_cost(summed, shape, precision) > matmuls
    paid = budget(1e-3, matmuls, cost=table, form="gram", precision=precision)
    assert paid == budget(1e-3, matmuls, shape=shape, form="gram", precision=precision)
    assert _gram_cost(paid, shape, precision) <= matmuls


@pytest.mark.parametrize(("shape", "matmuls"), [((4, 1), 6.0), ((1, 1), 10.0)])
def test_gram_form_against_all_sequences(shape, matmuls):
    """No sequence with its restarts does better than what the search keeps, in these cases."""
    found = frontier(1e-2, matmuls, degrees=(3, 5), form="gram", shape=shape, precision="float16")
    f = Rounding.of(format_of("float16"))
    start = first_state(1e-2, f)
    for n in range(1, 6):
        for degrees in itertools.product((3, 5), repeat=n):
            state = start
            for d in degrees[:-1]:
                state = next_step(state, d, f)
            s = Schedule(steps=last_step(state, degrees[-1], f)[1].steps, lower=1e-2)
            if _gram_cost(s, shape, "float16") <= matmuls:
                assert found[-1].error <= s.error() * (1 + 1e-3) + 2 * 2.0**-11


def test_gram_form_refuses():
    with pytest.raises(ValueError, match="form must be 'plain' or 'gram', got 'auto'"):
        budget(1e-3, 9, form="auto")
    with pytest.raises(ValueError, match=r"shape is for the default cost model, .*cost=\{"):
        budget(1e-3, 9, shape=(4, 4), cost={3: 1, 5: 2, 9: 3})
    with pytest.raises(ValueError, match="shape must be an integer of at least 1"):
        frontier(1e-3, 9, shape=(4, 0), form="gram")
    plain = budget(1e-3, 12, shape=(512, 64), degrees=(3, 5))
    assert plain == budget(1e-3, 12, cost=costs((512, 64)), degrees=(3, 5))


# Costs by a calibration

SIZES = [64, 256]


def _calibration(path, tables=("numpy.cpu",), seconds=True, by_half=False, **kernels):
    """A file of costs: each kernel as given at both sizes, all others as a product."""
    lines = []
    for name in tables:
        lines += [f"[{name}]", "measured = true", 'source = "a test"', f"sizes = {SIZES}"]
        for format_name in cost_tables.FORMATS:
            lines.append(f"[{name}.{format_name}]")
            for kernel in cost_tables.MEASURED:
                lines.append(f"{kernel} = {kernels.get(kernel, [1.0, 1.0])}")
            if seconds:
                lines.append("seconds = [1e-4, 64e-4]")
        if by_half:
            lines += [f"[{name}.symmetric]", "bfloat16 = [0.5, 0.5]"]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def calibration(tmp_path):
    return functools.partial(_calibration, tmp_path / "costs.toml")


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize("shape", [(64, 64), (1024, 256), (64, 512)])
def test_a_calibration_in_which_all_products_cost_alike_is_the_default(calibration, form, shape):
    path = calibration(elementwise=[1e-300, 1e-300])
    arguments = {"form": form, "shape": shape, "precision": "float32"}
    for mine, theirs in zip(
        frontier(1e-2, 9.01, costs=path, **arguments),
        frontier(1e-2, 9.01, **arguments),
        strict=True,
    ):
        assert mine.degrees == theirs.degrees
        assert math.isclose(mine.cost, theirs.cost, rel_tol=1e-9)


def test_prices_are_those_of_the_kernels(calibration):
    """A quintic in plain form: Gram matrix, its square with an addend, X P with one."""
    path = calibration(gram=[0.5, 0.7], hermitian_product=[0.8, 0.9], elementwise=[0.2, 0.1])
    for n, m, (gram, product, passed) in (
        (64, 64, (0.5, 0.8, 0.2)),
        (256, 1024, (0.7, 0.9, 0.1)),
        (128, 128, (0.6, 0.85, 0.15)),  # between the sizes in the logarithm
    ):
        found = frontier(0.5, 4, degrees=(5,), costs=path, shape=(m, n))[0]
        assert math.isclose(found.cost, gram + (product + passed) * n / m + 1 + passed)


def test_products_by_half_cost_what_was_measured(calibration):
    path = calibration(by_half=True, elementwise=[1e-9, 1e-9])
    arguments = {"degrees": (3,), "costs": path, "shape": (64, 64)}
    assert math.isclose(frontier(0.5, 3, precision="bfloat16", **arguments)[0].cost, 1.5)
    assert math.isclose(frontier(0.5, 3, precision="float16", **arguments)[0].cost, 2.0)


@pytest.mark.parametrize(("n", "seconds"), [(64, 1e-4), (256, 64e-4), (128, 8e-4), (512, 0.0512)])
def test_the_source_predicts_seconds(calibration, n, seconds):
    path = calibration()
    s = budget(0.1, 12, costs=path, shape=(3 * n, n), batch=5)
    cost = frontier(0.1, 12, costs=path, shape=(3 * n, n))[-1].cost
    said = re.search(r"; (.*) products of (.*), numpy.cpu, float64: (.*) seconds$", s.source)
    assert said[2] == f"{3 * n} x {n} by {n} x {n}, 5 at once"
    assert math.isclose(float(said[1]), cost, rel_tol=1e-3)
    assert math.isclose(float(said[3]), cost * 5 * 3 * seconds, rel_tol=1e-2)
    bare = budget(0.1, 12, costs=calibration(seconds=False), shape=(3 * n, n))
    assert bare.source.endswith("numpy.cpu, float64")


def test_expensive_products_of_small_matrices_prefer_lower_degrees(calibration):
    dear = calibration(hermitian_product=[9.0, 9.0])
    assert set(best_degrees(1e-2, 40, costs=dear, shape=(64, 64))) == {3}
    cheap = calibration(hermitian_product=[0.01, 0.01], elementwise=[0.001, 0.001])
    assert set(best_degrees(1e-2, 8.2, costs=cheap, shape=(64, 64))) == {9}


def test_gram_form_pays_for_restarts_by_a_calibration(calibration):
    path = calibration(gram=[0.5, 0.5], elementwise=[0.1, 0.1])
    for choice in frontier(
        1e-3, 14, form="gram", shape=(256, 64), costs=path, precision="bfloat16"
    ):
        s = for_precision_of(choice.degrees, "bfloat16")
        sections = 1 + len(restarts(s, "bfloat16"))
        small = (1.0 + 0.1) / 4
        inner = sum({3: 0, 5: 1, 9: 2}[d] + 3 for d in choice.degrees)
        assert math.isclose(
            choice.cost, sections * (0.5 + 1.1 - 3 * small) + inner * small, rel_tol=1e-9
        )


def for_precision_of(degrees, precision):
    f = Rounding.of(format_of(precision))
    state = first_state(1e-3, f)
    for d in degrees[:-1]:
        state = next_step(state, d, f)
    return schedule_of(last_step(state, degrees[-1], f)[1], f, 1e-3)


def test_calibrations_refuse(calibration, tmp_path):
    path = calibration(tables=("numpy.cpu", "torch.gpu", "torch.cpu"))
    arguments = {"lower": 0.1, "matmuls": 9, "costs": path, "shape": (64, 64)}
    for library, message in (
        (None, "3 tables.*choose one of numpy.cpu, torch.gpu, torch.cpu by library=$"),
        ("jax", "no such table"),
        ("torch", "2 tables.*torch.gpu, torch.cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            budget(**arguments, library=library)
    assert "torch.gpu" in budget(**arguments, library="torch.gpu").source
    assert "numpy.cpu" in budget(**arguments, library="numpy").source
    for changed, message in (
        ({"shape": None}, r"give shape=\(m, n\), got shape=None"),
        ({"cost": {3: 1.0}}, "give cost, a model, or costs, a calibration, not both"),
        ({"batch": 0}, "batch must be an integer of at least 1"),
        ({"costs": None, "shape": None}, "library is for costs= of a calibration"),
    ):
        with pytest.raises(ValueError, match=message):
            budget(**{**arguments, "library": "numpy", **changed})
    with pytest.raises(ValueError, match="batch is for costs="):
        budget(0.1, 9, batch=3)
    with pytest.raises(FileNotFoundError):
        budget(0.1, 9, costs=tmp_path / "none.toml", shape=(3, 3))
    with pytest.raises(TypeError, match="costs must be a str or path-like"):
        budget(0.1, 9, costs=3, shape=(3, 3))
