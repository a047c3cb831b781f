"""The scripts of benchmarks/: runs in other processes, accuracy, measurements, pages, the claim."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from polarlib import timing

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "evidence" / "polar_benchmarks.md"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not installed")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here is about how long it takes."""
    monkeypatch.setattr(timing, "PAUSE", 0.0)


def module(name):
    """A script of benchmarks/ as a module, as if run from its folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def common():
    return module("common")


@pytest.fixture(scope="module")
def script():
    return module("polar")


@pytest.fixture(scope="module")
def pages():
    return module("polar_page")


@pytest.fixture(scope="module")
def speed():
    return module("orthogonalize")


# -- runs ------------------------------------------------------------------------------------


def ended(pid):
    """Whether a process is gone, within ten seconds."""
    for _ in range(1000):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_the_busy_process_uses_a_processor_and_ends_on_errors(common):
    with common.busy(False) as child:
        assert child is None
    begun = os.times().children_user
    seen = []

    def fail():
        with common.busy() as child:
            seen.append(child)
            assert child.poll() is None
            time.sleep(0.5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen[0].poll() is not None
    # Its processor time is counted when it has ended; others may share the processor.
    assert os.times().children_user - begun > 0.05


def test_the_busy_process_must_begin(common, monkeypatch):
    monkeypatch.setattr(common, "SPIN", "raise SystemExit")
    with pytest.raises(RuntimeError, match="did not begin"), common.busy():
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are seen in /proc")
def test_the_busy_process_ends_with_its_parent(common):
    program = (
        "import os, common\n"
        "with common.busy() as child:\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    paths = os.pathsep.join([str(BENCHMARKS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ran.returncode == -9
    assert ended(int(ran.stdout))


def test_another_number_of_threads_is_another_process(common, monkeypatch):
    started = []
    monkeypatch.setattr(common.os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(sys, "argv", ["polar.py", "--threads", "1"])
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.setenv("XLA_FLAGS", "--some")
    common.restart_with(None)
    assert started == []
    common.restart_with(1)
    ((path, command, env),) = started
    assert path == sys.executable
    assert command == [sys.executable, "polar.py", "--threads", "1"]
    assert {env[name] for name in common.THREADS} == {"1"}
    assert env["XLA_FLAGS"] == f"--some {common.ONE_THREAD}"
    # The new process finds its own environment, and measures.
    for name in (*common.THREADS, "XLA_FLAGS"):
        monkeypatch.setenv(name, env[name])
    common.restart_with(1)
    assert len(started) == 1


def test_the_new_process_has_the_threads(tmp_path):
    out = tmp_path / "figures.json"
    options = [
        "--threads",
        "1",
        "--sizes",
        "2",
        "--dtypes",
        "float32",
        "--matrices",
        "10",
        "--quick",
    ]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(BENCHMARKS / "polar.py"), *options, "--out", str(out)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert [run["threads"] for run in json.loads(out.read_text())["runs"].values()] == [1]


def test_runs_of_another_machine_are_replaced(common, monkeypatch):
    figures = {"runs": {}}
    run = common.run_of(figures, True)
    run["cases"]["x"] = 1
    assert common.run_of(figures, True) is run
    assert common.run_of(figures, False)["cases"] == {}
    assert run["machine"] == common.where()
    (name,) = (name for name in figures["runs"] if "busy" in name)
    assert name == common.run_name(run)
    assert [r["busy"] for r in common.runs(figures)] == [False, True]
    newer = f"{run['machine']}, newer"
    monkeypatch.setattr(common, "where", lambda: newer)
    assert common.run_of(figures, True) == run | {"machine": newer, "cases": {}}
    assert len(figures["runs"]) == 2


def test_runs_have_names_and_an_order(common):
    made = [
        {"threads": t, "busy": b, "machine": m}
        for t in (1, 2)
        for b in (True, False)
        for m in ("x86_64 (Intel(R) Xeon(R) Processor)", "x86_64 (AMD EPYC)", "another")
    ]
    figures = {"runs": {common.run_name(run): run for run in made}}
    assert [common.run_name(run) for run in common.runs(figures)] == [
        f"{vendor}{threads}{busy}"
        for busy in ("", ", one processor busy")
        for threads in ("2 threads", "1 thread")
        for vendor in ("", "AMD with ", "Intel with ")
    ]


# -- accuracy and counts ---------------------------------------------------------------------


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


def test_accuracy_is_of_what_was_returned(script):
    a = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    u, h = np.eye(3, 2), np.diag([2.0, 1.0])
    assert script.accuracy(a, u, h) == {"backward_error": 0, "orthogonality": 0}
    found = script.accuracy(a, u * (1 + 2.0**-40), h)
    assert found["backward_error"] == pytest.approx(2.0**-40, rel=1e-9)
    assert found["orthogonality"] == pytest.approx(2.0**-39, rel=1e-9)


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


# -- measurements ----------------------------------------------------------------------------


def run(script, *options, code=0):
    app = typer.Typer()
    app.command()(script.main)
    result = CliRunner().invoke(app, list(map(str, options)))
    assert result.exit_code == code, result.output
    return result.output


def test_the_script_measures(script, monkeypatch, tmp_path):
    monkeypatch.setitem(script.SHAPES, "256", (6, 5))
    monkeypatch.setattr(script, "SECONDS", 0.001)
    out = tmp_path / "new" / "figures.json"
    options = ["--sizes", "256", "--rounds", "2", "--out", out]
    run(script, *options, "--dtypes", "float32", "--matrices", "10,gaussian", "--busy")
    run(script, *options, "--dtypes", "float64", "--matrices", "1e15", "--peers", "qdwh,numpy svd")
    figures = json.loads(out.read_text())
    (idle,) = (r for r in figures["runs"].values() if not r["busy"])
    (busy,) = (r for r in figures["runs"].values() if r["busy"])
    assert list(busy["cases"]) == ["float32 256 10", "float32 256 gaussian"]
    found = idle["cases"]["float64 256 1e15"]
    assert list(found) == ["results", *timing.SITUATIONS]
    for situation in timing.SITUATIONS:
        assert {"scipy.linalg.polar", "qdwh", "numpy svd"} <= set(found[situation])
        for row in found[situation].values():
            low, high = row["quartiles"]
            assert 0 < low <= row["ratio"] <= high
            assert row["rounds"] >= 2
        assert found[situation]["scipy.linalg.polar"]["ratio"] == 1.0
    for result in found["results"].values():
        assert result["backward_error"] < 1e-14
        assert result["orthogonality"] < 1e-14
    assert found["results"]["qdwh"]["method"] == "qdwh"
    results = busy["cases"]["float32 256 10"]["results"]
    assert results["polar"]["orthogonality"] > 1e-9


@pytest.mark.parametrize("name", ["numpy svd", "torch svd", "jax svd", "jax qdwh"])
def test_contenders_give_both_factors(script, name):
    library = pytest.importorskip(name.split()[0])
    a = script.matrix((6, 5), "1e2", "float64")
    before = library.config.jax_enable_x64 if library.__name__ == "jax" else None
    try:
        found = script.contenders(a, (name,))
        assert list(found) == ["scipy.linalg.polar", name]
        u, h = (np.asarray(x) for x in found[name]())
    finally:
        if before is not None:
            library.config.update("jax_enable_x64", before)
    assert max(script.accuracy(a, u, h).values()) < 1e-14


def test_ratios_are_to_scipy_in_the_same_round_and_situation(script, monkeypatch):
    asked = []

    def interleaved(functions, seconds, *, situation, **rest):
        asked.append(situation)
        scale = len(asked)
        return {script.REFERENCE: [2.0, 8.0, 8.0], "polar": [1.0 * scale, 2.0 * scale, 8.0 * scale]}

    monkeypatch.setattr(script, "interleaved", interleaved)
    found = script.measured({}, 3, 0.0)
    assert asked == list(timing.SITUATIONS)
    assert [found[s]["polar"]["ratio"] for s in asked] == [2.0, 1.0, pytest.approx(2 / 3)]
    assert found["alone"]["polar"]["reference_milliseconds"] == 8000.0


def test_what_is_measured_by_default(script):
    every = script.jobs(None, None, None, False)
    assert {shape for _, shape, _ in every} == set(script.SHAPES) - {"4096"}
    small = [k for d, s, k in every if (d, s) == ("float64", "2")]
    large = [k for d, s, k in every if (d, s) == ("float64", "2048")]
    assert small == list(script.MATRICES["float64"])
    assert large == ["1e15", "gaussian"]
    named = script.jobs("2048,4096", "float64", None, False)
    assert len(named) == 2 * len(script.MATRICES["float64"])
    assert len(script.jobs(None, None, None, True)) == 12


def test_a_quick_run_is_not_kept(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setattr(script, "QUICK_SIZES", ("2",))
    monkeypatch.setattr(script, "QUICK_SECONDS", 0.0)
    assert "2 x 2" in run(script, "--quick")
    assert not script.FIGURES.exists()


def test_the_script_refuses(script, tmp_path):
    for options in (["--peers", "matlab"], ["--sizes", "3"], ["--matrices", "1e3"]):
        run(script, *options, "--out", tmp_path / "x.json", code=2)
    assert not (tmp_path / "x.json").exists()


# -- the page and the claim ------------------------------------------------------------------

RESULT = {
    "backward_error": 1e-15,
    "orthogonality": 2e-15,
    "method": "invented",
    "reason": "made up for a test",
    "iterations": 3,
    "products_counted": 4,
}


def row(ratio):
    return {
        "milliseconds": 2.0,
        "reference_milliseconds": 3.5,
        "ratio": ratio,
        "quartiles": [ratio - 0.25, ratio + 0.25],
        "rounds": 9,
    }


def case(alone, alternation, product):
    """A case with invented ratios of polar, and others of qdwh."""
    found = dict(zip(timing.SITUATIONS, (alone, alternation, product), strict=True))
    return {
        "results": {"polar": RESULT, "qdwh": RESULT | {"backward_error": math.nan}},
    } | {s: {"polar": row(r), "qdwh": row(r / 2)} for s, r in found.items()}


def fake_figures(pages):
    """Figures that nobody measured, and that say so."""
    names = [
        f"{d} {s} {k}" for d, kinds in pages.MATRICES.items() for s in pages.SHAPES for k in kinds
    ]
    cases = {name: case(3.0, 1.75, 2.0) for name in names if "4096" not in name}
    cases["float64 2048 1e15"] = case(0.75, 0.996, 1.5)
    two = {"threads": 2, "busy": False, "machine": "FAKE, for a test", "cases": cases}
    one = two | {"threads": 1, "cases": {"float32 2 10": case(1.5, 1.5, 0.999)}}
    counts = {
        "recurrences": {"QDWH": [4] * len(pages.CONDITIONS)},
        "methods": {"qdwh": [[5, 6, "qdwh, then svd"]] * len(pages.CONDITIONS)},
    }
    return {"runs": {"2 threads": two, "1 thread": one}, "counts": counts}


def test_the_page_is_made(pages, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    figures = fake_figures(pages)
    folder = tmp_path / "figures"
    pages.make_page(page, figures, folder)
    text = page.read_text(encoding="utf-8")
    assert "Machines:\n\n- 2 threads; 1 thread: FAKE, for a test\n" in text
    least = "0.75 (2048 x 2048, κ = 1e15)"
    assert f"| 2 threads | float64 | worst | 72 | {least} | 1.75 | 1.75 (" in text
    assert "| 1 thread | float32 | after a product | 1 | 1.00 (2 x 2, κ = 10) |" in text
    assert "1.75 (alternation) | 0.75 (alone) | 1.75 (alternation) |" in text
    assert text.startswith(
        "# Speed and accuracy of `polar()`\n\n<!-- begin summary -->\nIn float64, on 72"
    )
    times = "| float32 | 512 x 512 | κ = 1e4 | 3.5 / 3.5 / 3.5 | 2 / 2 / 2 | 9 / 9 / 9 |"
    assert f"{times} invented | made up for a test |" in text
    assert "| 1 thread | float32 | 2 x 2 | κ = 10 | 1.00 | 0.50 |" in text
    assert "| float64 | polar | 1.0e-15 / 2.0e-15 |" in text
    assert "| float64 | qdwh | nan / 2.0e-15 |" in text
    assert "| 5; 6* | 5; 6* |" in text
    for suffix in ("png", "svg"):
        assert (tmp_path / "figures" / f"polar_benchmarks.{suffix}").stat().st_size > 5000
    # A second call gives identical files, and old cases are removed.
    before = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()} | {"": text}
    pages.make_page(page, figures, folder)
    after = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    assert after | {"": page.read_text(encoding="utf-8")} == before
    pages.make_page(page, {"runs": {}, "counts": {}}, folder)
    assert "invented" not in page.read_text(encoding="utf-8")


def test_the_claim_is_the_smallest_ratio_of_all(pages):
    figures = fake_figures(pages)
    assert pages.claim(figures) == (
        "In float64, on 72 matrices, `polar` is 1.75 times as fast as `scipy.linalg.polar` in the "
        "median, and at least 0.75 times (2048 x 2048, κ = 1e15, after a pause, 2 threads). "
        "In float32, on 60 matrices, `polar` is 1.75 times as fast as `scipy.linalg.polar` in the "
        "median, and at least 0.99 times (2 x 2, κ = 10, after a NumPy product, 1 thread). "
        "Each ratio is the worst of those measured after a pause, in alternation with SciPy and "
        "after a NumPy product. Settings: 2 threads and 1 thread "
        "([table](docs/evidence/polar_benchmarks.md), `python benchmarks/polar.py`)."
    )
    worse = figures["runs"]["1 thread"]["cases"]["float32 2 10"]
    worse["alternation"]["polar"] = row(0.25)
    assert "and at least 0.25 times (2 x 2, κ = 10, in alternation" in pages.claim(figures)


def test_the_command_prints_the_claim(script, pages, tmp_path):
    out = tmp_path / "figures.json"
    out.write_text(json.dumps(fake_figures(pages)), encoding="utf-8")
    assert " ".join(run(script, "--claim", "--out", out).split()) == pages.claim(
        fake_figures(pages)
    )


def test_the_page_in_the_docs_is_of_the_figures_in_the_docs(pages, common, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    pages.make_page(page, common.load(pages.FIGURES), tmp_path)
    # else: python benchmarks/polar.py --page docs/evidence/polar_benchmarks.md
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_the_page_of_orthogonalize_is_of_its_figures(common, speed):
    made = speed.page(common.load(speed.FIGURES))
    # else: python benchmarks/orthogonalize.py --markdown docs/evidence/benchmarks.md
    assert made == (ROOT / "docs" / "evidence" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_sentence_on_the_host_is_of_its_data():
    pytest.importorskip("torch")
    host_time = module("host_time")
    figures = json.loads(host_time.DATA.read_text(encoding="utf-8"))
    assert host_time.sentence(figures) in host_time.PAGE.read_text(encoding="utf-8")
    times = figures["microseconds"]
    assert times["auto"] <= 1.25 * times[host_time.MUON]
