"""Benchmarks: timing by turns, kernels, the table of a calibration, the command, the page."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import typer
from typer.testing import CliRunner

import polarlib
from polarlib import bench, cli
from polarlib.arrays import blas
from polarlib.arrays.kernels import NumpyKernels
from polarlib.design import cost_tables

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "polar.py"
PAGE = ROOT / "docs" / "polar_benchmarks.md"
A_MOMENT = 0.001


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here is about how long it takes."""
    monkeypatch.delenv(cost_tables.VARIABLE, raising=False)
    for name, value in (("PAUSE", 0.0), ("BURST", 1e-5), ("SHORT", 1e-5)):
        monkeypatch.setattr(bench, name, value)


@pytest.fixture(params=[name for name in bench.LIBRARIES if name != "cupy"])
def library(request):
    pytest.importorskip(bench.LIBRARIES[request.param][1].replace("-", "_"))
    return request.param


# -- timing ----------------------------------------------------------------------------------


def test_turns_rotate_and_warm_up():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "abc"}
    clock = bench.by_turns(functions, 0, least=4)
    assert {name: len(times) for name, times in clock.items()} == dict.fromkeys("abc", 4)
    assert all(t >= 0 for times in clock.values() for t in times)
    turns = "".join(called[3:])
    assert re.fullmatch("a+b+c+b+c+a+c+a+b+a+b+c+", turns), turns
    assert called[:3] == list("abc")


def test_a_turn_is_a_median(monkeypatch):
    monkeypatch.setattr(bench, "BURST", 0.01)
    monkeypatch.setattr(bench, "SHORT", 0.1)
    spent = iter([0.05, 0.001, 0.002, 0.2])
    now = [0.0]

    def call():
        now[0] += next(spent)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    assert bench._burst(call) == pytest.approx(0.002)  # of three: the first waited for threads
    assert bench._burst(call) == pytest.approx(0.2)  # a long one is not repeated


def test_rounds_go_on_for_the_time_given():
    rounds = {s: len(bench.by_turns({"a": lambda: None}, s)["a"]) for s in (0, 1e9)}
    assert rounds == {0: bench.LEAST, 1e9: bench.MOST}


@pytest.mark.parametrize("text", ["", "1", "0,8", "8,", "8;9", "8.5", "-8"])
def test_wrong_sizes(text):
    with pytest.raises(ValueError, match=f"--sizes must be .* got {re.escape(repr(text))}"):
        bench.sizes_of(text)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_wrong_seconds(seconds):
    for function in (bench.calibrate, bench.compare):
        with pytest.raises(
            ValueError, match=f"--seconds must be a positive number up to 86400, got {seconds}"
        ):
            function("numpy", sizes=[4], seconds=seconds)


def test_wrong_libraries_and_devices(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown library 'nunpy'; did you mean 'numpy'\?"):
        bench.compare("nunpy", sizes=[4], seconds=1)
    with pytest.raises(ValueError, match="device must be 'cpu' or 'gpu', got 'cuda'"):
        bench.calibrate("numpy", sizes=[4], seconds=1, device="cuda")
    monkeypatch.setitem(bench.LIBRARIES, "torch", ("no_such_module", "torch"))
    with pytest.raises(ValueError, match="torch is not installed"):
        bench.compare("torch", sizes=[4], seconds=1)


# -- kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", cost_tables.FORMATS)
def test_kernels_compute_what_they_say(library, format_name):
    n = 12
    # As the kernels' own matrices, here in double precision.
    rng = np.random.Generator(np.random.PCG64(0))
    tall = rng.standard_normal((2 * n, n)).astype(format_name).astype("float64")
    a, b = tall[:n], tall[n:]
    g = a.T @ a / n + np.eye(n)
    l = scipy.linalg.cholesky(g, lower=True)
    expected = {
        "matmul": a @ b,
        "gram": a.T @ a,
        "cholesky": l,
        "solve": scipy.linalg.solve_triangular(l, b, lower=True),
        "hermitian_product": b @ g,
        "inverse": np.linalg.inv(a),
        "elementwise": 1.5 * a,
        "apply_q": scipy.linalg.qr(a)[0] @ b,
        "qr": scipy.linalg.qr(a)[0],
        "qr_stack": scipy.linalg.qr(tall, mode="economic")[0],
        "svd": np.linalg.svd(a)[0],
        "eigh": np.linalg.eigh(g)[1],
    }
    start = tall[:n, 0] if library != "numpy" else blas._direction(n, g.dtype.char)
    krylov = np.linalg.qr(np.stack([np.linalg.matrix_power(g, k) @ start for k in range(9)], 1))[0]
    if library == "numpy":  # the upper factor, on the right, and a bound instead of the vector
        expected |= {"cholesky": l.T, "solve": b @ np.linalg.inv(l.T)}
        values, vectors = np.linalg.eigh(krylov[:, :8].T @ g @ krylov[:, :8])
        ritz = krylov[:, :8] @ vectors[:, -1]
        expected["lanczos"] = values[-1] + np.linalg.norm(g @ ritz - values[-1] * ritz)
    else:
        expected["lanczos"] = krylov[:, 8:]
    upper = ("gram", "cholesky") if library == "numpy" else ("gram",)
    signs = ("apply_q", "qr", "qr_stack", "svd", "eigh", "lanczos")
    with bench._arrays(library) as make:
        found = bench.kernels(n, format_name, make)
        assert sorted(found) == sorted(cost_tables.KERNELS) == sorted(expected)
        for name, kernel in found.items():
            if name != "apply_q" or library != "numpy":  # which turns its matrix in place
                kernel()
            x = np.asarray(kernel())  # the second time: nothing that it reads was written over
            want = expected[name]
            if name != "lanczos":
                assert x.dtype == format_name
            if name in upper:
                x, want = np.triu(x), np.triu(want)
            if name in signs:
                x, want = abs(x), abs(want)
            atol = 2e-4 if format_name == "float32" else 1e-11
            if name == "lanczos":  # whose recurrence amplifies rounding
                atol *= 100
            np.testing.assert_allclose(x, want, atol=atol, err_msg=name)


def test_numpys_cholesky_is_timed_on_the_same_matrix_each_time(monkeypatch):
    given, answers = [], []
    kernel = blas.cholesky

    def recorded(z):
        given.append(np.triu(z))
        answers.append(kernel(z))

    monkeypatch.setattr(NumpyKernels, "cholesky", staticmethod(recorded))
    found = bench.kernels(9, "float64", np.asarray)["cholesky"]
    found()
    found()
    assert answers == [True] * 3
    assert all(np.array_equal(z, given[0]) for z in given)


def test_lanczos_is_lanczos(monkeypatch):
    g = np.diag([5.0, 4.0, 3.0, 2.0, 1.0])
    v = np.ones((5, 1))
    krylov = np.linalg.qr(np.stack([np.diag(g) ** k for k in range(5)], axis=1))[0]
    for steps in range(1, 5):
        monkeypatch.setattr(bench, "LANCZOS_STEPS", steps)
        last = bench._lanczos(g, v, bench.ops_of(g))[:, 0]
        assert abs(last @ krylov[:, steps]) == pytest.approx(1, abs=1e-10)


# -- calibration -----------------------------------------------------------------------------


def test_a_calibration_is_used(library, tmp_path, monkeypatch):
    told = []
    tables = bench.calibrate(library, sizes=[4, 8], seconds=A_MOMENT, advance=told.append)
    assert len(told) == 4
    path = tmp_path / "costs.toml"
    bench.add_costs(path, tables)
    assert cost_tables.read_costs(path) == tables
    name = cost_tables.GENERIC if library == "array_api_strict" else library
    table = tables[name]["cpu"]
    assert table["measured"] is True
    assert f"--library {library};" in table["source"]
    monkeypatch.setenv(cost_tables.VARIABLE, str(path))
    found = cost_tables.kernel_costs(name, "float32", 8)
    assert found["svd"] == table["float32"]["svd"][1] > 0


def test_costs_are_ratios_to_a_product(monkeypatch):
    times = {name: [2.0, 4.0, 90.0] for name in cost_tables.KERNELS} | {"matmul": [1.0, 2.0, 3.0]}
    monkeypatch.setattr(bench, "by_turns", lambda functions, seconds: times)
    table = bench.calibrate("numpy", sizes=[4], seconds=1)["numpy"]["cpu"]
    assert {v for f in cost_tables.FORMATS for values in table[f].values() for v in values} == {2.0}


def made(value, sizes, source="here"):
    table = {"measured": True, "source": source, "sizes": sizes}
    columns = {k: [value] * len(sizes) for k in cost_tables.KERNELS if k != "matmul"}
    return table | {name: dict(columns) for name in cost_tables.FORMATS}


def test_calibrations_of_one_machine_add_up(tmp_path):
    path = tmp_path / "costs.toml"
    bench.add_costs(path, {"numpy": {"cpu": made(1.0, [64, 256])}})
    bench.add_costs(path, {"torch": {"gpu": made(5.0, [64])}})
    bench.add_costs(path, {"numpy": {"cpu": made(2.0, [128, 256])}})
    found = cost_tables.read_costs(path)
    assert found["torch"]["gpu"] == made(5.0, [64])
    assert found["numpy"]["cpu"]["sizes"] == [64, 128, 256]
    assert found["numpy"]["cpu"]["float64"]["qr"] == [1.0, 2.0, 2.0]
    bench.add_costs(path, {"numpy": {"cpu": made(3.0, [128], 'another "machine"')}})
    assert cost_tables.read_costs(path)["numpy"]["cpu"] == made(3.0, [128], 'another "machine"')


def test_other_files_are_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt: is not TOML"):
        bench.add_costs(path, {"numpy": {"cpu": made(1.0, [64])}})
    assert path.read_text() == "mine"
    with pytest.raises(OSError, match="nowhere"):
        bench.add_costs(tmp_path / "nowhere" / "x.toml", {"numpy": {"cpu": made(1.0, [64])}})


def test_the_shipped_file_is_what_would_be_written(tmp_path):
    shipped = Path(polarlib.__file__).with_name("data") / "costs.toml"
    bench.add_costs(tmp_path / "x.toml", cost_tables._shipped())
    assert (tmp_path / "x.toml").read_text() == shipped.read_text()


def test_jax_is_left_as_it_was():
    config = pytest.importorskip("jax").config
    before = config.jax_enable_x64
    try:
        for state in (False, True):
            config.update("jax_enable_x64", state)
            bench.compare("jax", sizes=[4], seconds=A_MOMENT)
            assert config.jax_enable_x64 is state
    finally:
        config.update("jax_enable_x64", before)


# -- peers -----------------------------------------------------------------------------------


def test_peers_are_compared(library):
    rows = bench.compare(library, sizes=[4, 6], seconds=A_MOMENT)
    names = ["polar", "orthogonalize", "scipy.linalg.polar", "numpy.linalg.svd"]
    names += [] if library == "numpy" else [f"{library} svd"]
    assert [row["function"] for row in rows] == names * 4
    assert {(row["format"], row["size"]) for row in rows} == {
        (f, n) for f in cost_tables.FORMATS for n in (4, 6)
    }
    for row in rows:
        low, high = row["quartiles"]
        assert 0 < low <= row["ratio"] <= high
        assert row["milliseconds"] > 0
        assert row["matrix_products"] > 0
        assert row["rounds"] >= bench.LEAST
        assert bool(row["method"]) == (row["function"] == "polar")
    scipys = [row for row in rows if row["function"] == "scipy.linalg.polar"]
    assert {(row["ratio"], *row["quartiles"]) for row in scipys} == {(1.0, 1.0, 1.0)}


def test_ratios_are_of_single_rounds(monkeypatch):
    def times(functions, seconds):
        found = {name: [4.0, 4.0, 4.0] for name in functions}
        return found | {"polar": [1.0, 2.0, 8.0], "scipy.linalg.polar": [2.0, 8.0, 8.0]}

    monkeypatch.setattr(bench, "by_turns", times)
    row = bench.compare(sizes=[4], seconds=1)[0]
    assert (row["ratio"], row["milliseconds"], row["matrix_products"]) == (2.0, 2000.0, 0.5)
    assert row["quartiles"] == [1.0, 4.0]


# -- the command -----------------------------------------------------------------------------


def run(*args, code=0):
    result = CliRunner().invoke(cli.app, ["bench", *map(str, args)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code:
        assert result.stdout == ""
        assert result.stderr.startswith("polarlib: ")
        assert result.stderr.count("\n") == 1
        return result.stderr
    assert result.stderr == ""
    return result.stdout


def test_the_command_compares():
    text = run("--sizes", "4", "--seconds", A_MOMENT)
    assert "scipy.linalg.polar" in text
    assert "quartiles" in text
    found = json.loads(run("--sizes", "4,5", "--seconds", A_MOMENT, "--json"))
    assert len(found["rows"]) == 16
    assert found["rows"][0]["function"] == "polar"


def test_the_command_calibrates(tmp_path):
    path = tmp_path / "costs.toml"
    text = run("--calibrate", "--sizes", "4", "--seconds", A_MOMENT, "-o", path)
    assert f"POLARLIB_COSTS={path}" in text
    assert cost_tables.read_costs(path)["numpy"]["cpu"]["sizes"] == [4]
    options = ("--calibrate", "--sizes", "4,5", "--seconds", A_MOMENT, "--json")
    found = json.loads(run(*options))
    assert found["costs"]["numpy"]["cpu"]["sizes"] == [4, 5]
    assert found["costs_file"] is None
    assert json.loads(run(*options, "-o", path))["costs_file"] == str(path)


def test_the_command_refuses(tmp_path):
    (tmp_path / "notes.toml").write_text("mine")
    cases = {
        ("--sizes", "x"): "--sizes must be numbers",
        ("--seconds", "0"): "--seconds must be a positive number",
        ("--library", "nump"): "unknown library 'nump'",
        ("--device", "tpu"): "device must be 'cpu' or 'gpu', got 'tpu'",
        ("-o", tmp_path / "x.toml"): "-o goes with --calibrate",
        ("--calibrate", "-o", tmp_path / "x.json"): "name a file that ends in .toml",
        ("--calibrate", "-o", tmp_path / "nowhere" / "x.toml"): "there is no folder",
        ("--calibrate", "-o", tmp_path / "notes.toml"): "is not TOML",
    }
    for options, said in cases.items():
        assert said in run(*options, code=2)
    assert (tmp_path / "notes.toml").read_text() == "mine"


# -- the script and its page -----------------------------------------------------------------

needs_script = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not installed")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_of_polar", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        sys.modules["benchmark_of_polar"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))
        sys.modules.pop("benchmark_of_polar", None)
        sys.modules.pop("common", None)


@needs_script
def test_products_of_slices_are_exact(script):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 40)) * 10.0 ** rng.integers(-6, 7, (5, 40)), rng.random((40, 4))
    c = a @ b
    exact = [
        [
            Fraction(c[i, j]) - sum(Fraction(a[i, k]) * Fraction(b[k, j]) for k in range(40))
            for j in range(4)
        ]
        for i in range(5)
    ]
    found = script.residual(c, a, b)
    scale = np.abs(a).max(axis=1) * 40
    for i in range(5):
        for j in range(4):
            assert abs(float(found[i, j]) - float(exact[i][j])) <= 2.0**-58 * scale[i]
    # Where doubles see nothing: a residual below their rounding.
    assert float(np.abs(found).max()) > 0
    a, b = np.array([[1.0, 2.0**-30]]), np.array([[1.0], [2.0**-30]])
    assert float(script.residual(a @ b, a, b)[0, 0]) == -(2.0**-60)


@needs_script
def test_accuracy_is_of_what_was_returned(script):
    a = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    u, h = np.eye(3, 2), np.diag([2.0, 1.0])
    assert script.accuracy(a, u, h) == {"backward_error": 0, "orthogonality": 0}
    found = script.accuracy(a, u * (1 + 2.0**-40), h)
    assert found["backward_error"] == pytest.approx(2.0**-40, rel=1e-9)
    assert found["orthogonality"] == pytest.approx(2.0**-39, rel=1e-9)


@needs_script
def test_recurrences_take_the_published_numbers_of_steps(script):
    expected = {
        "QDWH": [2, 2, 3, 4, 4, 4, 5, 5, 6],
        "Zolotarev, 2 poles": [1, 2, 2, 3, 3, 3, 3, 4, 4],
        "Zolotarev, 8 poles": [1, 1, 1, 2, 2, 2, 2, 2, 2],
        "Newton, Byers and Xu": [3, 4, 4, 5, 6, 7, 7, 8, 9],
        "Newton and Schulz": [3, 5, 7, 11, 17, 22, 34, 45, 96],
        "minimax quintics, cushion 0.1": [2, 3, 3, 5, 6, 8, 12, 15, 30],
    }
    for name, steps in expected.items():
        count = script.RECURRENCES[name]
        some = slice(0, 6) if "quintics" in name else slice(None)  # the others take seconds
        assert [count(1 / k) for k in script.CONDITIONS[some]] == steps[some], name


@needs_script
def test_the_script_measures(script, monkeypatch, tmp_path):
    monkeypatch.setitem(script.SHAPES, "256", [6, 5])
    out = tmp_path / "new" / "figures.json"
    app = typer.Typer()
    app.command()(script.main)
    options = ["--sizes", "256", "--seconds", str(A_MOMENT), "--rounds", "2", "--out", str(out)]
    one = ["--dtypes", "float32", "--matrices", "10,gaussian", "--peers", "auto"]
    two = ["--dtypes", "float64", "--matrices", "1e15", "--peers", "qdwh,peers"]
    for more in (one, two):
        result = CliRunner().invoke(app, [*options, *more])
        assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert list(found["cases"]) == [
        "float32 256 10", "float32 256 gaussian", "float64 256 1e15",
    ]  # fmt: skip
    rows = found["cases"]["float64 256 1e15"]
    assert {"scipy.linalg.polar", "qdwh", "numpy svd"} <= set(rows)
    for row in rows.values():
        assert row["backward_error"] < 1e-14
        assert row["orthogonality"] < 1e-14
        assert row["rounds"] == 2
    assert rows["qdwh"]["method"] == "qdwh"
    assert found["cases"]["float32 256 10"]["polar"]["orthogonality"] > 1e-9
    wrong = CliRunner().invoke(app, ["--peers", "matlab"])
    assert wrong.exit_code == 2


FAKE = {
    "milliseconds": 2.0,
    "matrix_products": 5.0,
    "reference_milliseconds": 3.5,
    "reference_products": 8.0,
    "ratio": 1.75,
    "quartiles": [1.5, 2.0],
    "rounds": 9,
    "backward_error": 1e-15,
    "orthogonality": 2e-15,
    "method": "invented",
    "reason": "made up for a test",
    "iterations": 3,
    "products_counted": 4,
}


def fake_figures(script):
    """Figures that nobody measured, and that say so."""
    rows = {script.AUTO: FAKE, "qdwh": FAKE | {"backward_error": math.nan}}
    rows[script.REFERENCE] = FAKE | {"ratio": 1.0, "quartiles": [1.0, 1.0]}
    names = [
        f"{d} {s} {k}" for d, kinds in script.MATRICES.items() for s in script.SHAPES for k in kinds
    ]
    cases = {name: rows for name in names if "4096" not in name}
    slow = {script.AUTO: FAKE | {"ratio": 0.5}, script.REFERENCE: rows[script.REFERENCE]}
    cases["float64 2048 1e15"] = slow
    counts = {
        "recurrences": {"QDWH": [4] * len(script.CONDITIONS)},
        "methods": {"qdwh": [[5, 6, "qdwh, then svd"]] * len(script.CONDITIONS)},
    }
    return {"machine": "FAKE, for a test", "cases": cases, "counts": counts}


@needs_script
def test_the_page_is_made(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    figures = fake_figures(script)
    script.make_page(page, figures)
    text = page.read_text(encoding="utf-8")
    assert "Machine: FAKE, for a test." in text
    assert "least 0.50 (2048 x 2048, κ = 1e15), most 1.75" in text
    row = "| float32 | 512 x 512 | κ = 1e4 | 3.5 | 2.0 | 8.0 | 5.0 | 1.75 | 1.50-2.00 | 9 |"
    assert f"{row} invented | made up for a test |" in text
    assert "| float64 | polar | 1.0e-15 / 2.0e-15 |" in text
    assert "| float64 | qdwh | nan / 2.0e-15 |" in text
    assert "| 5; 6* | 5; 6* |" in text
    for suffix in ("png", "svg"):
        assert (tmp_path / "figures" / f"polar_benchmarks.{suffix}").stat().st_size > 5000
    # Again the same, bit for bit; and nothing is left of what is no longer there.
    before = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()} | {"": text}
    script.make_page(page, figures)
    after = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    assert after | {"": page.read_text(encoding="utf-8")} == before
    figures["cases"].clear()
    figures["counts"] = {}
    script.make_page(page, figures)
    assert "invented" not in page.read_text(encoding="utf-8")


@needs_script
def test_the_page_in_the_docs_is_of_the_figures_in_the_docs(script, tmp_path):
    if not script.FIGURES.is_file():
        pytest.skip("not measured")
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    script.make_page(page, script.load(script.FIGURES))
    # else: python benchmarks/polar.py --page docs/polar_benchmarks.md
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
