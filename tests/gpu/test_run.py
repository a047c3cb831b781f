"""The script for machines with a GPU: what of it needs none must run, and be able to fail."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from standin import cupy_standin

import polarlib
from gpu import behaviour, context, correct, run, speed
from gpu.context import Context, Row
from gpu.libraries import Cupy
from gpu.xpolar import xpolar
from polarlib.arrays import cublas

SCRIPT = Path(run.__file__)
# The parts of which nothing runs without a GPU.
ON_DEVICES = ("waits", "graphs", "symmetric", "two_devices")


def test_every_part_that_needs_no_gpu(tmp_path):
    """With torch, JAX and the mock, as many of them as there are."""
    path = tmp_path / "gpu.json"
    how = ("--quick", "--device", "cpu", "--seconds", "900", "--json", path)
    done = subprocess.run(
        [sys.executable, SCRIPT, *how],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(polarlib.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert {part["state"] for part in found["parts"].values()} == {"done"}
    assert [*found["parts"]] == [run.named(part) for part, _ in run.PARTS]
    there = {"cupy"} | {name for name in ("torch", "jax") if importlib.util.find_spec(name)}
    rows = found["rows"]
    assert {row["what"].split()[0] for row in rows if row["part"] == "agreement"} == there
    assert {row["part"] for row in rows if row["value"] is not None} == {
        *(run.named(part) for part, _ in run.PARTS)
    } - {"machine", *ON_DEVICES}
    left_out = [row["skipped"] for row in rows if row["part"] in ON_DEVICES]
    assert all("GPU" in reason or "is not installed" in reason for reason in left_out)
    assert len([row for row in rows if row["bound"] is not None]) > 40
    # A line for each row, and the last one.
    lines = done.stdout.splitlines()
    assert sum(line.startswith("agreement ") for line in lines) == sum(
        row["part"] == "agreement" for row in rows
    )
    assert lines[-1].endswith(f"{sum(row['value'] is None for row in rows)} skipped")


def breaks(context: Context) -> dict:
    context.check("before it breaks", 0.0, 1.0)
    raise ZeroDivisionError("this part\nis broken")


def works(context: Context) -> dict:
    context.figure("speed", 2.0, "ms", host=1.0)
    return {"found": 1}


def fails(context: Context) -> dict:
    context.check("an error", math.nan, 1.0)
    return {}


def test_a_part_that_fails_is_reported_and_the_others_run(tmp_path, monkeypatch, capsys):
    path, states = tmp_path / "gpu.json", []
    write_whole = run.write_whole

    def write(path, content):
        write_whole(path, content)
        parts = json.loads(path.read_text())["parts"]
        states.append({name: part["state"] for name, part in parts.items()})

    monkeypatch.setattr(run, "write_whole", write)
    monkeypatch.setattr(run, "PARTS", ((breaks, 1.0), (works, 2.0)))
    monkeypatch.setattr(context, "KINDS", {"cupy": Cupy})
    assert run.main(["--device", "cpu", "--json", str(path)]) == 1
    assert states == [{"breaks": "failed"}, {"breaks": "failed", "works": "done"}]
    found = json.loads(path.read_text())
    (failure,) = found["parts"]["breaks"]["failures"]
    assert failure["error"].strip().endswith("is broken")
    assert [row["what"] for row in found["rows"]] == ["before it breaks", "speed"]
    assert found["parts"]["works"]["found"] == {"found": 1}
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[1] == "breaks all of it FAILED: ZeroDivisionError: this part is broken"
    assert shown[2] == "works speed 2 ms, host 1"
    assert shown[3] == "breaks all of it: could not go on: is broken"
    assert shown[4] == "1 of 1 checks passed, 0 skipped"


@pytest.mark.parametrize(("part", "status", "value"), [(works, 0, 2.0), (fails, 1, "nan")])
def test_the_exit_status_is_that_of_the_checks(monkeypatch, tmp_path, part, status, value):
    monkeypatch.setattr(run, "PARTS", ((part, 1.0),))
    monkeypatch.setattr(context, "KINDS", {"cupy": Cupy})
    path = tmp_path / "gpu.json"
    assert run.main(["--device", "cpu", "--json", str(path)]) == status
    (row,) = json.loads(path.read_text())["rows"]
    assert row["value"] == value  # JSON has no NaN
    assert row["passed"] == (not status)


def test_a_call_that_fails_does_not_stop_the_others(given, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    library = given.libraries["cupy"]
    given.end = math.inf
    monkeypatch.setattr(library, "queued", lambda call, count, hold: 0.5)
    speed.race(given, library, "both", {"one": fail, "other": lambda: None}, flops=1e12)
    assert [each["what"] for each in given.failures] == ["both one"]
    (row,) = given.rows
    assert (row.what, row.value, row.more["TFLOP/s"]) == ("both other, device", 500.0, 2.0)


def test_a_slow_call_is_made_once(given):
    calls = []
    slow = {"svd": lambda: calls.append(1)}
    found = given.libraries["cupy"].times(slow, {"svd": 60.0}, 3.0)
    assert (found["svd"].wall, found["svd"].kind, calls) == (60.0, "first call", [])


def test_a_library_that_fails_does_not_stop_the_others(capsys):
    given = Context("gpu", libraries={name: SimpleNamespace(name=name) for name in "abc"})

    def of_one(given, library):
        if library.name == "b":
            raise RuntimeError("no memory")
        given.check(f"{library.name} is there", 0, 0)

    given.per_library(of_one)
    assert [row.what for row in given.rows] == ["a is there", "c is there"]
    (failure,) = given.failures
    assert failure["what"] == "b"
    assert "no memory" in failure["error"]
    assert run.summary(given) == 1
    assert "b" in capsys.readouterr().out


def test_no_gpu_is_its_own_exit_status(monkeypatch, capsys):
    class Absent:
        def __init__(self, module, device):
            raise ValueError("has no GPU\nthat it can use")

    monkeypatch.setattr(context, "KINDS", {"json": Absent, "no_such_library": Absent})
    assert run.main([]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tests/gpu/run.py: json: has no GPU that it can use"
    assert said[1].startswith("tests/gpu/run.py: no_such_library is not installed")


def test_shares_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    given, saved, shares = Context("cpu"), [], []

    def part(given):
        shares.append(given.end - now[0])
        now[0] += 30.0
        return {}

    run.run_parts(given, [(part, 1.0), (part, 3.0)], 100.0, saved.append)
    assert shares == [25.0, 70.0]
    results = run.run_parts(given, [(part, 1.0), (works, 3.0)], 30.0, saved.append)
    assert [entry["state"] for entry in results["parts"].values()] == ["done", "no time left"]
    assert given.rows[-1] == Row("works", "works", skipped="the time of this part is used")
    assert len(saved) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--parts", "everything"], "invalid choice: 'everything'"),
        (["--seconds", "0"], "--seconds must be positive, got 0"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_wrong_options(given, message, capsys):
    with pytest.raises(SystemExit):
        run.main(given)
    assert message in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run.main(["--json", "nowhere/gpu.json"])


# -- parts on the mock -------------------------------------------------------------------------


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        yield module


@pytest.fixture
def given(cupy):
    """A quick run that takes the mock for a GPU."""
    return Context("gpu", True, {"cupy": Cupy(cupy, "gpu")})


def failed(given):
    return {row.what.split()[1] for row in given.rows if not row.passed}


def test_a_second_rounding_is_seen(given, monkeypatch):
    monkeypatch.setattr(cublas, "_binding", lambda: None)
    correct.rounding(given)
    assert failed(given) == {"bfloat16", "float16"}


def test_a_wrong_factor_is_seen(given, cupy, monkeypatch):
    whole = polarlib.orthogonalize

    def wrong(x, **kwargs):
        q = whole(x, **kwargs)
        return -q if isinstance(x, cupy.ndarray) and x.dtype == np.float16 else q

    monkeypatch.setattr(polarlib, "orthogonalize", wrong)
    correct.agreement(given)
    assert failed(given) == {"float16"}


def test_a_failure_that_is_not_seen_is_found(given, cupy, monkeypatch):
    monkeypatch.setattr(correct, "_factor", lambda library, z, dtype: cupy.asarray(z))
    monkeypatch.setattr(given, "pick", lambda full, quick, on_cpu: on_cpu)
    correct.potrf(given)
    unseen = [row for row in given.rows if "unseen" in row.what]
    assert len(unseen) == 4
    assert all(row.value == 6 for row in unseen)


@pytest.fixture
def events(cupy, monkeypatch):
    """Events after a kernel that ends at a synchronisation; a launch takes a millisecond."""

    class Event(cupy.cuda.Event):
        def record(self, stream=None):
            self.before = cupy_standin.syncs()
            self.calls = len(cupy_standin.calls())

        @property
        def done(self):
            return cupy_standin.syncs() > self.before

    monkeypatch.setattr(cupy.cuda, "Event", Event)
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda a, b: float(b.calls - a.calls))
    monkeypatch.setattr(cupy, "RawKernel", lambda source, name: lambda *args: None)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("waits", [True, False])
def test_who_waits_is_seen(given, cupy, monkeypatch, events, waits):
    whole = polarlib.orthogonalize

    def orthogonalize(x, **kwargs):
        q = whole(x, **kwargs)
        if waits and x.dtype == np.float16:
            cupy.cuda.Device().synchronize()
        return q

    monkeypatch.setattr(polarlib, "orthogonalize", orthogonalize)
    behaviour.waits(given)
    assert failed(given) == ({"float16"} if waits else set())
    assert any("a call that waits is seen" in row.what for row in given.rows)


def test_times_are_those_between_events(given, cupy, monkeypatch, events):
    monkeypatch.setattr(given, "pick", lambda full, quick, on_cpu: on_cpu)
    given.end = math.inf
    speed.products(given)
    rows = {row.what: row for row in given.rows}
    row = rows["cupy bfloat16 16 ours, device"]
    assert row.value == 1.0
    assert row.more["TFLOP/s"] == pytest.approx(2 * 16**3 / 1e-3 / 1e12)
    assert row.more["call"] >= row.more["host"] > 0


def test_both_streams_and_a_refused_capture(given, cupy, monkeypatch, events):
    class Stream(cupy.cuda.Stream):
        def begin_capture(self):
            monkeypatch.setattr(polarlib, "orthogonalize", refused)

        def end_capture(self):
            monkeypatch.setattr(polarlib, "orthogonalize", whole)

    def refused(x):
        raise NotImplementedError("cuBLAS cannot be captured")

    whole = polarlib.orthogonalize
    monkeypatch.setattr(cupy.cuda, "Stream", Stream)
    monkeypatch.setattr(given, "pick", lambda full, quick, on_cpu: on_cpu)
    behaviour.graphs(given)
    assert given.failures == []
    checks = [row for row in given.rows if row.bound is not None]
    assert len(checks) == 6
    assert all(row.passed for row in checks)
    monkeypatch.setattr(Stream, "begin_capture", lambda self: None)
    behaviour.graphs(given)
    assert {row.what for row in given.rows if not row.passed} == {
        f"cupy {dtype} capture is refused (0: yes)" for dtype in ("bfloat16", "float32")
    }


# -- cuSOLVER's own, on raw addresses --------------------------------------------------------------


@pytest.fixture
def binding(monkeypatch):
    """Nvmath's binding, with NumPy behind it."""
    created = []

    def xpolar_buffer_size(handle, params, uplo, m, n, *rest):
        assert len(rest) == 7
        created.append((m, n))
        return 64, 0

    def polar(handle, params, uplo, m, n, kind, a, lda, h_kind, h, ldh, compute, *rest):
        assert kind == h_kind == compute == 1
        assert (m, n) == (lda, created[-1][1])
        workspaces, (*_, info) = rest[:4], rest
        assert workspaces[1::2] == (64, 0)
        x = np.ctypeslib.as_array((ctypes.c_double * (m * n)).from_address(a)).reshape(n, m).T
        x[:] = polarlib.polar(x).unitary
        ctypes.c_int.from_address(info).value = created[-1][0] == 7

    module = ModuleType("nvmath.bindings.cusolverDn")
    vars(module).update(
        create=lambda: 1, create_params=lambda: 2, set_stream=lambda handle, stream: None,
        xpolar_buffer_size=xpolar_buffer_size, xpolar=polar,
    )  # fmt: skip
    for name in ("nvmath", "nvmath.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_call_of_xpolar(binding, monkeypatch):
    torch = pytest.importorskip("torch")
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    x = torch.randn(9, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    call = xpolar(torch, x)
    for _ in range(2):  # its input is overwritten, not the matrix
        torch.testing.assert_close(call(), polarlib.polar(x).unitary)
    with pytest.raises(RuntimeError, match="has info 1"):
        xpolar(torch, x[:7])
    for wrong in (x.T, x[None], x.bfloat16()):
        with pytest.raises(ValueError, match="takes one real matrix"):
            xpolar(torch, wrong)
