"""The timer and the command `bench`: situations, kernels, the table of a calibration."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from typer.testing import CliRunner

import polarlib
from polarlib import bench, cli, timing
from polarlib.arrays import blas
from polarlib.arrays.kernels import NumpyKernels
from polarlib.design import cost_tables

A_MOMENT = 0.001


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here is about how long it takes."""
    monkeypatch.delenv(cost_tables.VARIABLE, raising=False)
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(bench, "KERNEL_BURST", 1e-5)


@pytest.fixture(params=[name for name in bench.LIBRARIES if name != "cupy"])
def library(request):
    pytest.importorskip(bench.LIBRARIES[request.param][1].replace("-", "_"))
    return request.param


# -- timing ----------------------------------------------------------------------------------


def test_turns_rotate_and_warm_up():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "abc"}
    clock = timing.interleaved(functions, 0, least=4, burst=1e-5)
    assert {name: len(times) for name, times in clock.items()} == dict.fromkeys("abc", 4)
    assert all(t >= 0 for times in clock.values() for t in times)
    turns = "".join(called[3:])
    assert re.fullmatch("a+b+c+b+c+a+c+a+b+a+b+c+", turns), turns
    assert called[:3] == list("abc")
    called.clear()
    timing.interleaved(functions, 0, least=4)
    assert "".join(called) == "abc" + "abcbcacababc"


def test_with_two_functions_none_follows_itself():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "ab"}
    timing.interleaved(functions, 0, least=3)
    assert "".join(called) == "ab" + "ababab"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, and a function that advances it and keeps a diary."""
    now, diary = [0.0], []

    def later(what, seconds):
        diary.append(what)
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: later("pause", seconds))
    monkeypatch.setattr(timing.np, "matmul", lambda a, b: later(("product", a.shape, b.dtype), 2.0))
    return later, diary


@pytest.mark.parametrize(
    ("situation", "precedes"),
    [
        ("alone", ["pause"]),
        ("alternation", []),
        ("after a product", [("product", (512, 512), np.dtype("float64"))]),
    ],
)
def test_situations_precede_each_timed_call_and_are_not_timed(
    situation, precedes, clock, monkeypatch
):
    later, diary = clock
    monkeypatch.setattr(timing, "PAUSE", 8.0)
    functions = {"a": lambda: later("a", 0.25), "b": lambda: later("b", 0.5)}
    times = timing.interleaved(functions, 0, least=3, situation=situation)
    assert times == {"a": [0.25] * 3, "b": [0.5] * 3}
    assert diary == ["a", "b", *(3 * [*precedes, "a", *precedes, "b"])]


def test_a_function_can_be_the_situation(clock):
    later, diary = clock
    times = timing.interleaved(
        {"a": lambda: later("a", 0.25)}, 0, least=2, situation=lambda: later("given", 8.0)
    )
    assert times == {"a": [0.25] * 2}
    assert diary == ["a", "given", "a", "given", "a"]


def test_short_calls_are_repeated_until_the_clock_resolves_them(clock):
    later, diary = clock
    functions = {"a": lambda: later("a", 0.25), "b": lambda: later("b", 2.0)}
    times = timing.interleaved(functions, 0, least=2, situation="alone", burst=1.0)
    assert times == {"a": [0.25] * 2, "b": [2.0] * 2}
    assert diary[2:] == 2 * ["pause", *"aaaa", "pause", "b"]


def test_unknown_situations():
    with pytest.raises(ValueError, match=r"situation must be one of alone, .*, got 'idle'"):
        timing.interleaved({"a": int}, 0, situation="idle")
    with pytest.raises(ValueError, match=r"situation must be 'alone', .*, got 'idle'"):
        bench.compare(sizes=[4], seconds=1, situation="idle")


def test_the_product_before_a_call_is_of_the_library(library):
    with bench._arrays(library) as make:
        assert bench._preceding("alone", make) == "alone"
        x = bench._preceding("after a product", make)()
        a, b = timing.factors()
        assert type(x) is type(make(a))
        np.testing.assert_allclose(np.asarray(x), a @ b, rtol=1e-12, atol=1e-12)


def test_rounds_go_on_for_the_time_given():
    def rounds(seconds):
        return len(bench._times({"a": lambda: None}, seconds)["a"])

    assert {s: rounds(s) for s in (0, 1e9)} == {0: bench.LEAST, 1e9: bench.MOST}


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
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs torch; install polarlib\[torch\]"):
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
    seen = []
    tables = bench.calibrate(
        library, sizes=[4, 8], seconds=A_MOMENT, callback=lambda k, ms: seen.append((k, ms))
    )
    assert [k for k, _ in seen] == [1, 2, 3, 4]
    assert {k.total for k, _ in seen} == {4}
    assert seen[0][0].what == f"{library}, float32, 4 x 4"
    assert all(ms > 0 for _, ms in seen)
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
    monkeypatch.setattr(bench, "interleaved", lambda functions, seconds, **rest: times)
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


def test_costs_of_symmetric_products_add_up(tmp_path):
    def by_half(sizes, **costs):
        return {"torch": {"gpu": made(1.0, sizes) | {"symmetric": costs}}}

    path = tmp_path / "costs.toml"
    bench.add_costs(path, by_half([64, 256], bfloat16=[0.9, 0.7], float16=[0.9, 0.7]))
    bench.add_costs(path, by_half([128, 256], bfloat16=[0.8, 0.6]))
    table = cost_tables.read_costs(path)["torch"]["gpu"]
    assert table["sizes"] == [64, 128, 256]
    assert table["symmetric"] == {"bfloat16": [0.9, 0.8, 0.6]}  # where all sizes are known
    bench.add_costs(path, {"torch": {"gpu": made(1.0, [512])}})
    assert "symmetric" not in cost_tables.read_costs(path)["torch"]["gpu"]


def test_symmetric_products_are_timed_where_there_are_some(monkeypatch):
    assert bench._symmetric([4], np.asarray, 1.0) == {}
    calls = []
    pair = {"matmul": lambda: calls.append("whole"), "symmetric": lambda: calls.append("half")}
    monkeypatch.setattr(bench, "rivals", lambda g, finished: {"bfloat16": pair})
    times = {"matmul": [2.0, 4.0, 2.0], "symmetric": [1.0, 3.0, 1.0]}
    monkeypatch.setattr(bench, "interleaved", lambda calls, seconds, **how: times)
    assert bench._symmetric([4, 8], np.asarray, 1.0) == {"symmetric": {"bfloat16": [0.5, 0.5]}}


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


@pytest.mark.parametrize("situation", timing.SITUATIONS)
def test_peers_are_compared(library, situation):
    rows = bench.compare(library, sizes=[4, 6], seconds=A_MOMENT, situation=situation)
    assert {row["situation"] for row in rows} == {situation}
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
    def times(functions, seconds, **rest):
        found = {name: [4.0, 4.0, 4.0] for name in functions}
        return found | {"polar": [1.0, 2.0, 8.0], "scipy.linalg.polar": [2.0, 8.0, 8.0]}

    monkeypatch.setattr(bench, "interleaved", times)
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
    assert "interleaved runs, alternation" in " ".join(text.split())
    options = ("--sizes", "4,5", "--seconds", A_MOMENT, "--json", "--situation", "alone")
    found = json.loads(run(*options))
    assert len(found["rows"]) == 16
    assert {row["situation"] for row in found["rows"]} == {"alone"}
    assert found["rows"][0]["function"] == "polar"


@pytest.mark.slow
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
        ("--situation", "idle"): "situation must be 'alone'",
        ("--calibrate", "--situation", "alone"): "--situation must not be given with --calibrate",
        ("-o", tmp_path / "x.toml"): "-o must be given with --calibrate",
        ("--calibrate", "-o", tmp_path / "x.json"): "name a file that ends in .toml",
        ("--calibrate", "-o", tmp_path / "nowhere" / "x.toml"): "there is no folder",
        ("--calibrate", "-o", tmp_path / "notes.toml"): "is not TOML",
    }
    for options, said in cases.items():
        assert said in run(*options, code=2)
    assert (tmp_path / "notes.toml").read_text() == "mine"
