"""The stress test of low precision on small matrices, and the page of its data."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import polarlib
from polarlib import timing
from polarlib.arrays.formats import format_of
from polarlib.arrays.numpy_ops import NumpyOps
from polarlib.arrays.ops import ops_of
from polarlib.engine.iterate import coupled
from polarlib.testing import SPECTRA

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not installed")


def _module(name):
    """A script of benchmarks/, as if run from its folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def script():
    """Matrices, metrics and comparisons."""
    return _module("stress_cases")


@pytest.fixture(scope="module")
def ranges():
    """Range, scale, simulated formats and other packages."""
    return _module("stress_range")


@pytest.fixture(scope="module")
def command():
    """The command, with the page."""
    return _module("stress")


@pytest.fixture(scope="module")
def other(ranges):
    return ranges.other


@pytest.fixture(scope="module")
def speed():
    """benchmarks/orthogonalize.py as a module."""
    return _module("orthogonalize")


# -- metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (20, 8), (8, 20)])
def test_metrics_of_the_exact_factor_are_zero_and_of_a_wrong_one_known(script, shape):
    a = np.random.default_rng(0).standard_normal(shape)
    case = script.case("gaussian", a, "float32")
    u, s, vh = np.linalg.svd(case.matrix.astype(float), full_matrices=False)
    assert script.metrics(case, u @ vh) == pytest.approx(np.zeros(5), abs=1e-13)
    # Twice the factor: Q^T Q - I = 3 I, and H = 2 H_exact, so A - Q H = -3 A.
    twice = script.metrics(case, 2 * u @ vh)
    assert twice == pytest.approx([3, 3, 0, 1, 1], abs=1e-12)
    # One singular direction turned round: H has the eigenvalue -s_1, the gap is 2 s_1 / sum(s).
    turned = script.metrics(case, (u * np.where(np.arange(s.size), 1, -1)) @ vh)
    assert turned[2] == pytest.approx(s[0] / np.linalg.norm(s), rel=1e-12)
    assert turned[3] == pytest.approx(2 * s[0] / s.sum(), rel=1e-12)
    assert np.all(np.isinf(script.metrics(case, u @ vh * math.nan)))


def test_outcome_has_ties_within_one_rounding(script):
    tie = format_of("bfloat16").unit_roundoff
    published = np.array([0.5, 0.5, 0.5, math.inf, math.inf])
    default = np.array([0.5 - 2 * tie, 0.5 + 0.9 * tie, 0.5 + 2 * tie, 0.1, math.inf])
    assert script.outcome(published, default, "bfloat16").tolist() == [1, 0, -1, 1, 0]


def test_verdict_has_the_better_one_and_what_diverged(script):
    good = np.tile([0.1, 0.1, 0.0, 0.1, 0.1], (2, 1))
    bad = np.add(good, [[0.5], [math.inf]])
    row = {
        "name": "x",
        "format": "bfloat16",
        "published": bad,
        "default": good,
        "spectra": ["a", "b"],
    }
    assert "default better" in script.verdict(row)
    assert "diverges on 1 of 2" in script.verdict(row)
    assert script.counts(row).tolist() == [[2] * 5, [0] * 5, [0] * 5]
    assert "published better" in script.verdict(row | {"published": good, "default": bad})


def test_cases_are_rounded_to_their_format(script):
    cases = script.stress_cases(["ones", "gamma"], "bfloat16", 8, (1, 4), 2)
    assert [c.shape for c in cases] == ["8 x 8", "8 x 8", "32 x 8", "32 x 8"] * 2
    for c in cases:
        bits = c.matrix.view(np.int32)
        assert np.all(bits & 0xFFFF == 0)  # bfloat16 numbers
        assert c.nuclear == pytest.approx(np.linalg.norm(c.matrix, "nuc"), rel=1e-5)
    assert not np.array_equal(cases[0].matrix, cases[1].matrix)


# -- the default and published sets -----------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_default_is_at_least_as_good_in_the_mean_at_equal_products(script, precision):
    cases = script.stress_cases(SPECTRA[:11], precision, 32, (1, 4), 1)
    for row in script.compare(cases, precision):
        if row["products"] != 15:
            continue
        found = script.outcome(
            row["published"].mean(axis=0), row["default"].mean(axis=0), precision
        )
        if row["name"] in ("newton_schulz_5", "modula"):  # the exceptions: their slope is smaller
            slopes = (polarlib.schedule(row["name"]), script.default_of(precision, 15))
            assert slopes[0].slope < 0.4 * slopes[1].slope
            assert found[0] == 1, script.verdict(row)
        else:
            assert np.all(found[1:] >= 0), script.verdict(row)
        assert script.diverged(row["default"]) == 0


def test_the_comparison_can_be_lost(script):
    cases = script.stress_cases(["log 1e-3"], "float16", 16, (1,), 1)
    row = next(r for r in script.compare(cases, "float16") if r["name"] == "deepseek_v4")
    cubic = script.measure(cases, "float16", schedule=polarlib.schedule("newton_schulz_3", 3))
    assert "published better" in script.verdict(row | {"default": cubic})


def test_every_set_is_compared(script):
    assert set(script.SETS) | set(script.OTHER_SETS) == set(polarlib.schedules()) - {
        "newton_schulz_3",  # two thirds of the products of newton_schulz_5
        "polar_express_raw",  # without any safety
    }


def test_designs_for_other_functions_have_the_smaller_errors(script):
    rows = script.other_rows()
    for set_name, designs in script.OTHER_SETS.items():
        names = [f"`{set_name}`", *designs]
        published, *own = [r for r in rows if r["name"] in names]
        assert published["name"] == f"`{set_name}`"
        assert len(own) == len(designs)
        for r in own:
            assert r["products"] <= published["products"]
            assert r["errors"] < published["errors"]
    for r in rows:
        assert r["errors"][1] <= r["errors"][0] * (1 + 2e-2)


def test_products_of_the_coupled_iteration(script):
    counted = []

    class Counting(NumpyOps):
        def gemm_hermitian(self, *args, **named):
            counted.append(1)
            return super().gemm_hermitian(*args, **named)

    for s in (polarlib.schedule("inverse_sqrt_nv"), polarlib.design.inverse_root(2, 0.1, [5, 5])):
        counted.clear()
        coupled(np.eye(3), s.steps, Counting(ops_of(np.eye(3)).xp), stride=2)
        polynomials = s.matmuls - 2 * len(s)
        assert len(counted) + polynomials == script.coupled_products(s)


def test_zero_singular_values(script):
    """Rounding makes small values of them, which the slope amplifies; each remedy is closer."""
    (row,) = [script.zero_row("rank one", np.ones(1), 32, 64)]
    away = row["distances"]
    assert away["default"] > 0.3
    for remedy in ("float16", "float32", "design", "truncated"):
        assert away[remedy] < 0.5 * away["default"], remedy
    assert away["truncated"] < 1e-2
    # To first order the distance is that of the amplified values.
    a = script.case("x", script.with_singular_values(np.r_[1.0, np.zeros(31)], 64), "bfloat16")
    noise = np.linalg.svd(a.matrix.astype(float), compute_uv=False)[1:]
    slope = script.default_of("bfloat16", 15).slope
    assert away["default"] == pytest.approx(slope * np.linalg.norm(noise), rel=0.35)


# -- safety ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["plain", "gram", "auto"])
@pytest.mark.parametrize("steps", [5, 9])
def test_the_default_never_diverges(script, precision, form, steps):
    # Some failures of Gram forms show only at 8 : 1 and from 64 columns on.
    cases = [c for n in (16, 64) for c in script.hostile(n, (1, 8), precision)]
    found = script.safety(cases, precision, form, script.default_steps(precision, steps))
    assert found.lost == 0
    assert found.largest < script.SAFE, found
    assert found.smallest > 0.5, found


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_safe_sets_give_finite_results(script, precision):
    cases = script.hostile(16, (1, 8), precision)
    names = script.safe_sets(precision)
    assert {"polar_express", "you", "jordan"} <= set(names)
    assert not {"polar_express_raw", "cans"} & set(names)
    for name in names:
        for form in ("plain", "gram"):
            s = script.steps_of(name, 5)
            found = script.safety(cases, precision, form, {"schedule": s})
            assert found.lost == 0, (name, form)
            # The AOL set of one package reverses directions, which a warning reports.
            assert found.smallest > 0 or name == "aol_nv", (name, form, found)


def test_a_set_without_safety_diverges(script):
    cases = script.hostile(16, (1,), "bfloat16")
    raw = {"schedule": polarlib.schedule("polar_express_raw", 9)}
    assert script.safety(cases, "bfloat16", "plain", raw).largest > 10


# -- range -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float8_e4m3", "float8_e5m2"])
def test_nothing_leaves_the_range_of_a_format(ranges, precision):
    """Matrices of ordinary kinds, tall and wide, in every normalisation: the page in small."""
    every = ranges.NORMALISATIONS
    jobs = [
        ((16, 256), (precision,), every, ("plain", "gram")),
        ((256, 16), (precision,), every, ("plain",)),
        ((160, 160), (precision,), ("moments", "frobenius"), ("plain",)),
    ]
    results = list(ranges.range_results(jobs))
    unit = format_of(precision).unit_roundoff
    error = polarlib.default_schedule(precision).error()
    assert len(results) == 6 * (10 + 5 + 2)
    for r in results:
        assert r.largest < 1 + error + 3 * unit, r
        assert r.aligned > 1 - error - 2 * unit, r
        if r.distance is not None:
            assert r.distance < error + 2 * unit, r
    part = ranges.range_part(results, jobs)
    assert [row["normalisation"] for row in part["rows"]] == list(every)
    assert sum(row["results"] for row in part["rows"]) == len(results)
    assert {row["not finite"] for row in part["rows"]} == {0}
    tops = [top for row in part["rows"] for top in row["largest"].values()]
    assert max(tops) == max(r.largest for r in results)


def test_a_small_mean_counts_in_eight_bits():
    """Off-diagonal entries of the Gram matrix that are all small and alike make it large."""
    a = (np.random.default_rng(0).standard_normal((512, 512)) + 0.06).astype("f4")
    u, _, vh = np.linalg.svd(a)
    for precision in ("float8_e4m3", "float8_e5m2"):
        q = polarlib.orthogonalize(a, precision=precision).astype("f8")
        assert np.linalg.norm(q, 2) < 1.2
        assert 0.8 < u[:, 0] @ q @ vh[0] < 1.2  # the direction of the mean


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_native_formats_keep_their_range(ranges, dtype):
    torch = pytest.importorskip("torch")
    for c in ranges.ranged((256, 128)):
        single = torch.from_numpy(c.matrix).to(getattr(torch, dtype))
        for x in (single, torch.stack([single, 3 * single])):
            for form in ("plain", "gram"):
                q = polarlib.orthogonalize(x, form=form).double().numpy()
                top = np.linalg.norm(q, 2, axis=(-2, -1))
                assert np.all(top < 1.05), (c.name, form)
                assert np.all(np.sum(q * c.matrix, axis=(-2, -1)) > 0.9 * c.nuclear), (c.name, form)


# -- scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_factor_is_the_same_over_the_whole_range(ranges, precision):
    row = ranges.scale_row(precision, "numpy", (12, 8))
    assert row["powers"] == {"bfloat16": 259, "float16": 38}[precision]
    assert row["differ"] == 0
    assert row["worst"] < 8
    assert row["zero"]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_factor_is_the_same_up_to_rounding_in_wide_formats(ranges, precision):
    row = ranges.scale_row(precision, "numpy", (6, 4))
    assert row["powers worst"] < 64
    assert row["worst"] < 64
    assert row["zero"]


def test_scale_in_torch(ranges):
    pytest.importorskip("torch")
    row = ranges.scale_row("bfloat16", "torch", (12, 8))
    assert row["differ"] == 0
    assert row["zero"]


# -- simulated and native --------------------------------------------------------------------


def test_units_count_from_the_typical_size(ranges):
    y = np.array([[1.0, 2.0], [1e-6, -1.0]], np.float32)
    x = y + np.array([[2.0**-7, 0], [2.0**-8, 0]], np.float32)
    assert ranges.units(x, y) == 1.0  # the small entry has the unit of the root mean square


@pytest.mark.parametrize("shape", [(64, 64), (128, 32)])
def test_simulated_bfloat16_is_torchs_own(ranges, shape):
    pytest.importorskip("torch")
    rows = ranges.agreement(shape)
    assert len(rows) == 5
    for row in rows:
        assert row["step, equal"] > 0.9
        assert row["step, distance"] < 1e-3
        assert row["all, distance"] < 0.02
    # The first step has nothing before it that could differ: a part of the last place at most.
    assert rows[0]["all, equal"] > 0.999
    assert rows[0]["all, units"] <= 2


# -- other packages --------------------------------------------------------------------------


def test_packages_are_found_or_a_reason_is_given(other, tmp_path):
    found, missing = other.find(tmp_path)
    assert set(missing) <= set(other.ADAPTERS)
    assert all(reason for reason in missing.values())
    if importlib.util.find_spec("torch"):
        assert found["torch.optim.Muon"].products == 15


def test_a_script_is_not_the_package_of_its_name(other, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "muon", raising=False)
    assert Path(importlib.util.find_spec("muon").origin).parent == BENCHMARKS
    found, missing = other.find(tmp_path)
    assert "KellerJordan/Muon" not in found
    assert any("muon is neither installed" in reason for reason in missing.values())


def test_a_peer_of_a_checkout(other, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    (tmp_path / "Muon").mkdir()
    (tmp_path / "Muon" / "muon.py").write_text(
        "def zeropower_via_newtonschulz5(x, steps):\n    return x * steps\n"
    )
    monkeypatch.delitem(sys.modules, "muon", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found, _ = other.find(tmp_path)
    peer = found["KellerJordan/Muon"]
    assert peer.source == "unknown commit"
    a = np.array([[1.0, 2.0]], np.float32)
    assert peer.given(a).dtype == torch.bfloat16
    assert peer.result(a).tolist() == [[5.0, 10.0]]
    del sys.modules["muon"]


def test_pitfalls(ranges, other):
    torch = pytest.importorskip("torch")

    def naive(x):  # overflows, divides zero by zero, and overwrites
        x /= torch.sqrt(torch.sum(x * x))
        return x

    peer = other.Peer("naive", "", "torch", "float32", "float32", 0, naive)
    told = ranges.pitfalls(peer)
    assert told["1e25 A"] == "0"
    assert told["zero"] == "NaN"
    assert told["input"] == "overwritten"
    ours = ranges.pitfalls(ranges.as_peer("bfloat16", 15))
    assert list(ours.values()) == ["same", "same", "0", "0 of 50", "kept"]


# -- the page --------------------------------------------------------------------------------


def test_the_page_is_of_the_data(command):
    # else: python benchmarks/stress.py --markdown docs/evidence/stress.md
    data = command.load(command.DATA)
    page = command.ROOT / "docs" / "evidence" / "stress.md"
    assert command.page(data) == page.read_text(encoding="utf-8")
    names = [r["name"] for r in data["compared"]]
    assert set(names) == set(command.cases.SETS)
    assert command.text_of(data) == command.DATA.read_text(encoding="utf-8")


def test_the_data_are_of_this_code(command, script):
    (row,) = [
        r
        for r in command.load(command.DATA)["compared"]
        if (r["group"], r["name"], r["format"]) == ("gradients", "polar_express", "float16")
    ]
    cases = [c for c in script.gradient_cases("float16", 1000) if "digits" in c.spectrum]
    figures = script.measure(cases, "float16", schedule=script.default_of("float16", 15))
    assert row["results"] == len(script.gradient_cases("float16", 1000))
    assert np.all(figures[:, 1] <= 1.001 * row["default"]["worst"][1])


def test_a_row_has_means_and_counts(command, script):
    cases = script.stress_cases(["ones", "rank one"], "bfloat16", 8, (1,), 1)
    rows = script.compare(cases, "bfloat16")
    assert [r["name"] for r in rows] == list(script.SETS)
    row = command.plain(command.row_of(rows[0]))
    assert row["results"] == 2
    assert np.sum(row["counts"], axis=0).tolist() == [2] * 5
    expected = rows[0]["default"].mean(axis=0)
    assert row["default"]["mean"] == pytest.approx(expected, rel=1e-3)
    assert command.plain({"a": (np.ones(1), math.inf)}) == {"a": [[1.0], None]}


@pytest.mark.slow
def test_the_figure(command, tmp_path):
    command.draw(command.load(command.DATA)["compared"], tmp_path)
    for suffix in ("png", "svg"):
        assert (tmp_path / f"stress.{suffix}").stat().st_size > 5000


# -- the script that times -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "shape"),
    [
        *((library, shape) for library in ("numpy", "torch") for shape in [(12, 8), (2, 8, 8)]),
        ("jax", (8, 12)),  # compiling takes seconds
    ],
)
def test_contenders_do_the_same_work(speed, library, shape):
    pytest.importorskip(library)
    found, renew = speed.contenders(library, "float32", shape, {})
    renew()
    assert {"ours", "ours, plain", "ours, gram", "textbook", "products"} <= set(found)
    for name, function in found.items():
        result = function()
        if name == "products":
            continue
        q = np.asarray(result, dtype=np.float64)
        assert q.shape == shape
        largest = np.linalg.svd(q, compute_uv=False).max()
        assert 0.8 < largest < 1.2, name


def test_a_peer_that_overwrites_is_given_a_copy(speed, other):
    torch = pytest.importorskip("torch")
    given = torch.ones(2, 2)
    peer = other.Peer("x", "", "torch", "float32", "float32", 15, lambda x: x.mul_(2))
    run = speed._keeps(peer, given)
    assert run().tolist() == [[2, 2], [2, 2]]
    assert run().tolist() == [[2, 2], [2, 2]]
    assert given.tolist() == [[1, 1], [1, 1]]


def test_peak_bytes_count_what_is_held(speed):
    found = speed.peak_bytes("numpy", lambda: np.ones((256, 256)) + np.ones((256, 256)))
    assert found == pytest.approx(2 * 8 * 256**2, rel=0.05)


def test_figures_are_added_up_and_make_the_page(speed, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    path = tmp_path / "data" / "figures.json"
    figures = speed.load(path, "runs", "workspace", "peers")
    functions = {n: (lambda: sum(range(100))) for n in ("ours", "ours, plain", "textbook")}
    multiplied, renewed = [], []
    functions |= {"products": lambda: None, speed.MUON: lambda: None}
    found = speed.measured(
        functions, lambda: multiplied.append(0), lambda: renewed.append(0), 2, 0.0
    )
    assert list(found) == list(timing.SITUATIONS)
    assert all(rows["textbook"]["textbook"] == 1.0 for rows in found.values())
    assert len(multiplied) == 2 * len(functions)
    assert len(renewed) == 3 * len(multiplied)
    run = speed.run_of(figures, False)
    for shape in speed.SHAPES:
        run["cases"][f"numpy float32 {speed.by(shape)}"] = found
    figures["workspace"]["numpy float32 8 x 4"] = {"ours": 2.5, "claim": 3.5}
    speed.store(path, figures)
    assert speed.load(path) == figures
    text = speed.page(figures)
    assert "### numpy, float32, after a product" in text
    assert "### torch" not in text
    assert "| numpy float32 8 x 4 | 2.50 | 3.50 |" in text
    assert [j[0] for j in speed.jobs("numpy float32 512")] == ["numpy float32 512 x 4096"]


def test_means_are_of_the_worst_situation_of_each_shape():
    page = importlib.import_module("orthogonalize_page")

    def case(ours, muon):
        rows = zip(timing.SITUATIONS, ours, muon, strict=True)
        return {s: {"ours": {"textbook": o}, page.MUON: {"textbook": m}} for s, o, m in rows}

    found = {"a": case((2.0, 4.0, 8.0), (1.0, 1.0, 8.0)), "b": case((8.0, 9.0, 16.0), (1, 1, 1))}
    for each in found["b"].values():
        del each[page.MUON]
    for each in found.values():
        for rows in each.values():
            rows["textbook"] = {"textbook": 1.0}
    assert page.mean_ratio(found, timing.SITUATIONS, "textbook") == pytest.approx(4.0)
    assert page.mean_ratio(found, ("alternation",), "textbook") == pytest.approx(6.0)
    assert page.mean_ratio(found, timing.SITUATIONS, page.MUON) == pytest.approx(1.0)
    assert page.mean_ratio({"a": {}}, timing.SITUATIONS, page.MUON) is None


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_the_product_before_a_call_is_of_the_library(speed, library):
    pytest.importorskip(library)
    x = speed.product_of(library)()
    a, b = timing.factors()
    assert type(x).__module__.partition(".")[0].startswith((library, "jaxlib"))
    np.testing.assert_allclose(np.asarray(x), a @ b, rtol=1e-3, atol=1e-2)
