"""Steps of schedule="adaptive": safe wherever they are interpolated, as designed, as measured."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarlib import orthogonalize
from polarlib.arrays.formats import format_of
from polarlib.design.rounding import Rounding, rounding_bound
from polarlib.testing import with_singular_values

ROOT = Path(__file__).parents[1]
DATA = tomllib.loads((ROOT / "polarlib/data/adaptive.toml").read_text(encoding="utf-8"))
PAIRS = [(name, steps) for name in DATA if name != "rule" for steps in DATA[name]]
PARTS = 4
benchmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not installed"
)


def module(name):
    """A script of benchmarks/ as a module, as if run from its folder."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def nearest():
    return module("nearest")


@pytest.fixture(scope="module")
def figures():
    return json.loads((ROOT / "docs/data/nearest.json").read_text(encoding="utf-8"))


# -- safety ----------------------------------------------------------------------------------


def largest(of, steep: float, end: float) -> float:
    """Upper bound of a function on [0, end] whose slope is `steep` at most, by bisection."""
    width, parts = end / 500, np.arange(8)
    middles = (np.arange(500) + 0.5) * width
    for _ in range(5):
        values = of(middles)
        bounds = values + steep * width / 2
        middles = middles[bounds > values.max()]
        middles = (middles[:, None] + (parts - 3.5) * width / 8).ravel()
        width /= 8
    return float(of(middles).max() + steep * width / 2)


def bounds(step, upper: float, u: float) -> tuple[float, float]:
    """Lower bound of (p - u r) / x, and upper bound of p + u r, for all x in (0, upper].

    r is the bound of the rounding of a step, as in `design.rounding`.
    """
    a, b, c = step
    end = upper**2
    # Bounds of |z'|, z(y) = b y + c y^2, and of the slope in y of r(x) / x.
    steep = abs(b) + 2 * abs(c) * end
    inner = 3 * steep + 2 * abs(c) * end

    def below(y):
        z = b * y + c * y * y
        return u * (abs(a + z) + abs(z) + y * abs(b + 2 * c * y)) - (a + z)

    def above(x):
        p, r = rounding_bound(step, x)
        return p + u * r

    # |d/dx (x f(x^2))| <= |f| + 2 y |f'|, for f of p and of r.
    size = abs(a) + steep * end
    rise = size + 2 * end * steep + u * (size + 2 * steep * end + 2 * end * inner)
    return -largest(below, steep + u * inner, end), largest(above, rise, upper)


def images(head, tails, name: str, share: float) -> tuple[float, list[float]]:
    """Least quotient (p - u r) / x and the upper ends, for all compositions between two tails.

    Between two tails the coefficients are convex combinations of theirs, the same for all steps. At
    each x, p - u r is concave and p + u r convex in the coefficients: over all that are between
    them, one is least and the other largest at an end. So the ends are enough, provided that each
    step is bounded where either of the steps before it can take singular values.
    """
    f = Rounding.of(format_of(name))
    u, upper, least, ends = share * f.guarded, f.upper, np.inf, []
    for choices in [*([step] for step in head), *zip(*tails, strict=True)]:
        found = [bounds(step, upper, u) for step in choices]
        least = min(least, *(low for low, _ in found))
        upper = max(high for _, high in found)
        ends.append(upper)
    return least, ends


@pytest.mark.parametrize(("name", "steps"), PAIRS)
def test_every_interpolated_composition_is_safe(name, steps):
    """No singular value changes its sign or grows, whatever the place between the tails.

    Rounding is that of the model of `design.for_precision`, three quarters of its bound.
    """
    entry = DATA[name][steps]
    tails, parts = np.array(entry["tails"]), np.linspace(0, 1, PARTS + 1)
    # Parts of the way from a tail to the next: where the ends are near, so are their bounds.
    ways = [a + (b - a) * w for a, b in itertools.pairwise(tails) for w in parts[1:]]
    for pair in itertools.pairwise([tails[0], *ways]):
        least, ends = images(entry["head"], pair, name, 0.75)
        assert least > 0.02
        assert max(ends[:-1]) < 2
        assert ends[-1] < 1.3


def test_the_bounds_of_safety_can_fail():
    """A step that goes below zero is seen, and one that grows; both by brute force too."""
    x = np.linspace(1e-3, 1, 999)
    for step in [(4.0, -9.0, 4.9), (3.4445, -4.775, 2.0315), (2.0, -1.0, 0.1)]:
        low, high = bounds(step, 1.0, 0.0)
        p = step[0] * x + step[1] * x**3 + step[2] * x**5
        assert low <= (p / x).min() <= low + 0.01
        assert high - 0.01 <= p.max() <= high
    assert bounds((4.0, -9.0, 4.9), 1.0, 0.0)[0] < 0
    least, _ = images([(8.4703, -25.1081, 18.6293)], [[(4.2, -3.3, 0.6)]] * 2, "bfloat16", 1.0)
    assert least < 0


@given(st.sampled_from(PAIRS), st.floats(0, 1), st.lists(st.floats(-1, 1), min_size=40))
def test_rounding_between_the_tails_takes_no_singular_value_to_its_negative(pair, place, errors):
    """Scalar chains with any relative errors of the share that is allowed for."""
    name, steps = pair
    entry = DATA[name][steps]
    tails = np.array(entry["tails"])
    w, k = place * (len(tails) - 1), np.arange(len(tails))
    tail = np.tensordot(np.maximum(0, 1 - abs(w - k)), tails, 1)
    f = Rounding.of(format_of(name))
    x = np.geomspace(1e-4, f.upper, 64)
    for i, step in enumerate([*entry["head"], *tail.tolist()]):
        p, r = rounding_bound(step, x)
        x = p + 0.75 * f.unit * r * np.array((errors * 2)[i : i + 32] * 2)
        assert x.min() > 0
    assert x.max() < 1.3


# -- data ------------------------------------------------------------------------------------


@benchmark
@pytest.mark.parametrize(("name", "steps"), PAIRS)
def test_the_file_is_what_its_command_makes(nearest, name, steps):
    """Its first and last tail; numbers may differ in the last digits of a search."""
    design = nearest.design
    entry, first = DATA[name][steps], design.head(name)
    np.testing.assert_allclose(entry["head"], first, rtol=1e-3)
    assert len(entry["tails"]) == design.TAILS
    for k in (0, -1):
        lower = float(design.lower_ends(int(steps))[k])
        made = design.tail(name, lower, int(steps), first)
        np.testing.assert_allclose(entry["tails"][k], made, rtol=5e-3)
    assert DATA["rule"] == {**design.RULE._asdict(), "coefficients": [*design.RULE.coefficients]}


@benchmark
def test_the_stored_gradients_are_as_described(nearest):
    """At least thirty, of eight networks; each matrix as its entry says, and nothing large."""
    assert nearest.STORED.stat().st_size < 1.5e6
    facts = tomllib.loads(nearest.STORED.with_suffix(".toml").read_text(encoding="utf-8"))
    examples = nearest.stored()
    assert len(examples) >= 30
    assert len({e.group for e in examples}) == len(facts["network"]) == 8
    for e, fact in zip(examples, facts["matrix"], strict=True):
        values = np.linalg.svd(e.matrix.astype(np.float64), compute_uv=False)
        assert [*e.matrix.shape] == fact["shape"]
        assert 2**9 <= abs(e.matrix).max() < 2**10
        top = values[0] / np.linalg.norm(values)
        assert top == pytest.approx(fact["largest_over_frobenius"], rel=1e-9)


@benchmark
def test_a_tail_in_the_middle_is_no_worse_than_the_default(nearest):
    """Some tail is about the default schedule: the same error on its interval, in float32."""
    tails = [nearest.between(np.array(DATA["float32"]["5"]["tails"]), w) for w in range(8)]
    x = np.geomspace(2e-3, 1, 500)
    errors = []
    for tail in tails:
        y = x
        for a, b, c in [*DATA["float32"]["5"]["head"], *tail]:
            y = a * y + b * y**3 + c * y**5
        errors.append(abs(1 - y).max())
    assert min(errors) < 0.025


@benchmark
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(48, 48), (20, 64)])
def test_the_engine_agrees_with_the_benchmark(nearest, precision, shape):
    """schedule="adaptive" against the parts from which the benchmark takes it."""
    unit = format_of(precision).unit_roundoff
    for end in (0.5, 1e-1, 1e-2, 1e-4):
        s = np.r_[1.0, np.geomspace(0.3, end, min(shape) - 1)]
        a = with_singular_values(s, max(shape), seed=3).astype(np.float32)
        a = np.ascontiguousarray(a.T) if shape[0] < shape[1] else a
        q = orthogonalize(a, schedule="adaptive", precision=precision, form="plain")
        wanted = nearest.reference(a, precision, 5)
        # A place that rounding moves takes coefficients that are rounded otherwise.
        np.testing.assert_allclose(q.astype(np.float32), wanted, atol=8 * unit)


# -- figures ---------------------------------------------------------------------------------


@benchmark
@pytest.mark.thinned(3)
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_recorded_distances_are_what_is_computed(nearest, figures, precision):
    """Rows of a few matrices, by the formula; other sums of a BLAS move the last digits."""
    kept = {(r["matrix"], r["format"]): r["distances"] for r in figures["rows"]}
    examples = [*nearest.bundled()[::5], *nearest.stored()[::24], *nearest.made()[::25]]
    u = format_of(precision).unit_roundoff
    for e in examples:
        row = kept[e.name, precision]["15"]
        u_, s, vh = np.linalg.svd(e.matrix.astype(np.float64), full_matrices=False)
        rank = int(np.sum(s > max(e.matrix.shape) * 2**-52 * s[0]))
        wanted = u_[:, :rank] @ vh[:rank]
        for name in ("polar_express", "adaptive"):
            q = orthogonalize(e.matrix, schedule=name, steps=5, precision=precision, form="plain")
            found = np.linalg.norm(q - wanted) / np.sqrt(rank)
            assert found == pytest.approx(row[name], rel=0.02, abs=2 * u)


@benchmark
def test_recorded_counts_are_those_of_the_rows(nearest, figures):
    rows = [r for r in figures["rows"] if r["kind"] != "zeros"]
    assert figures["summary"] == nearest.summary(rows)
    assert sum(r["kind"] == "gradients" for r in rows) >= 3 * 40
    assert sum(r["kind"] == "made" for r in rows) >= 3 * 50


@benchmark
def test_the_rule_is_as_near_on_a_subset_as_recorded(nearest, figures):
    """The rule of the file, on every sixth gradient; then with coefficients that do not fit."""
    examples = [*nearest.bundled(), *nearest.stored()][::6]
    kept = {(r["matrix"], r["format"]): r["distances"]["15"] for r in figures["rows"]}
    rows = [kept[e.name, "bfloat16"] for e in examples]
    best = np.array([nearest.best_published(r)[0] for r in rows])
    curves = [nearest.curve(e.matrix, "bfloat16") for e in examples]

    def ratios(rule):
        places = [nearest.place(rule, c.mean, c.deviation) for c in curves]
        grid = np.linspace(0, 1, len(curves[0].distances))
        return (
            np.array([np.interp(w, grid, c.distances) for w, c in zip(places, curves, strict=True)])
            / best
        )

    rule = nearest.design.RULE
    recorded = np.array([r["adaptive"] for r in rows]) / best
    np.testing.assert_allclose(ratios(rule), recorded, rtol=0.05)
    other = rule._replace(coefficients=(-5.8, 0.0, 0.0, 0.0))
    assert ratios(rule).mean() < ratios(other).mean() - 0.02


@benchmark
def test_page_and_figures_agree(nearest, figures):
    guide = (ROOT / "docs" / "guide" / "adaptive.md").read_text(encoding="utf-8")
    assert nearest.short_table(figures["summary"]) in guide
    page = (ROOT / "docs" / "evidence" / "adaptive.md").read_text(encoding="utf-8")
    for key in ("summary", "unseen"):
        columns = ("products", "format", "kind", "who")
        assert nearest.counts_table(figures[key], *columns) in page
    assert nearest.counts_table(figures["validation"], "way", "format", "kind") in page


@benchmark
def test_the_claim_of_the_readme(figures):
    row = {"products": 15, "format": "bfloat16", "kind": "gradients"}
    near = {}
    for found in figures["summary"]:
        if row.items() <= found.items():
            near[found["who"]], of = found["near"], found["of"]
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"On {of} gradients of ten networks, in bfloat16 at 15 products, it is within 2 % of the "
        f"closest published set, or closer, on {near['adaptive']}; the default schedule is on "
        f"{near['default']} "
    ) in said
