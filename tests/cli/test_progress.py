"""Progress: what callbacks are called with, and the line on a terminal."""

import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from shell import PLAIN, invoke

import polarlib
from polarlib import bench, design
from polarlib.cli import progress
from polarlib.result import Progress

A = np.random.default_rng(0).standard_normal((6, 4))
posix = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")


# -- callbacks -------------------------------------------------------------------------------


def test_a_number_with_attributes():
    k = Progress(3, 10, "sweeps")
    assert (k, k + 1, f"{k}", k.total, k.what) == (3, 4, "3", 10, "sweeps")
    for same in (copy.deepcopy(k), pickle.loads(pickle.dumps(k))):
        assert (same, same.total, same.what) == (3, 10, "sweeps")
    assert (Progress(1).total, Progress(1).what) == (None, "")


POINTS = np.random.default_rng(1).standard_normal((3, 5, 2))
CALLS = {
    "polar": (lambda f: polarlib.polar(A, method="newton", callback=f), None, "iterations"),
    "measure": (lambda f: polarlib.measure(A, "jordan", callback=f), 5, "steps"),
    "measure, gram": (lambda f: polarlib.measure(A, "jordan", form="gram", callback=f), 5, "steps"),
    "measure, method": (lambda f: polarlib.measure(A, "qdwh", callback=f), None, "steps"),
    "measure, rational": (
        lambda f: polarlib.measure(A, design.zolotarev(2, 1e-3), callback=f),
        3,
        "steps",
    ),
    "generalized_procrustes": (
        lambda f: polarlib.generalized_procrustes(POINTS, max_iterations=50, callback=f),
        50,
        "sweeps",
    ),
    "tune": (
        lambda f: design.tune("slope", polarlib.schedule("jordan"), starts=2, callback=f),
        2,
        "local optimisations",
    ),
    "budget": (lambda f: design.budget(0.1, 6, callback=f), None, "sequences of degrees"),
    "frontier": (lambda f: design.frontier(0.1, 6, callback=f), None, "sequences of degrees"),
    "for_precision": (
        lambda f: design.for_precision("bfloat16", 0.1, matmuls=6, callback=f),
        None,
        "sequences of degrees",
    ),
    "clip": (lambda f: design.clip(2.0, [5], callback=f), None, "local optimisations"),
    "bench.compare": (lambda f: bench.compare(sizes=[4], seconds=0.01, callback=f), 2, "numpy, "),
}


class StopError(Exception):
    pass


@pytest.mark.filterwarnings("ignore::polarlib.result.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::polarlib.result.ScheduleWarning")
@pytest.mark.parametrize("name", CALLS)
def test_one_convention(name):
    call, total, what = CALLS[name]
    seen = []
    call(lambda k, value: seen.append((k, value)))
    ks = [k for k, _ in seen]
    assert ks == list(range(ks[0], ks[0] + len(ks)))
    assert ks[0] in (0, 1)
    assert all(type(k) is Progress for k in ks)
    assert {k.total for k in ks} == {total}
    assert total is None or ks[-1] <= total
    assert all(k.what.startswith(what) for k in ks)

    def stop(k, value):
        raise StopError

    with pytest.raises(StopError):
        call(stop)
    with pytest.raises(TypeError, match="callback must be a function"):
        call(1)


def test_distances_of_measure():
    seen = []
    t = polarlib.measure(A, "polar_express", callback=lambda k, value: seen.append(value))
    assert seen == list(t.distance)


def test_passes_of_polar_tall():
    da = pytest.importorskip("dask.array")
    x = np.random.default_rng(0).standard_normal((60, 5))
    seen = []
    polarlib.polar_tall(
        da.from_array(x, chunks=(20, 5)), callback=lambda k, s: seen.append((k, k.total, s))
    )
    assert [k for k, *_ in seen] == [1, 2]
    assert {total for _, total, _ in seen} == {3}
    exact = np.linalg.svd(x, compute_uv=False)
    for *_, s in seen:
        np.testing.assert_allclose(s, exact, rtol=1e-6)
    with pytest.raises(TypeError, match="callback must be a function"):
        polarlib.polar_tall(da.from_array(x, chunks=(20, 5)), callback=1)


def test_former_argument_of_bench():
    seen = []
    with pytest.warns(DeprecationWarning, match="callback="):
        bench.compare(sizes=[4], seconds=0.01, advance=seen.append)
    assert seen == ["numpy, float32, 4 x 4", "numpy, float64, 4 x 4"]


# -- the line on stderr ----------------------------------------------------------------------


def terminal(monkeypatch):
    """Show every job, however fast, as on a terminal."""
    monkeypatch.setattr(progress, "AFTER", -1.0)
    monkeypatch.setattr(progress, "EVERY", -1.0)
    monkeypatch.setattr(progress, "is_terminal", lambda: True)


COMMANDS = {
    "compare": ("compare", "A.npy", "--no-plots"),
    "design": ("design", "--spectrum", "A.npy", "--steps", "1"),
    "polar": ("polar", "A.npy", "-o", "U.npy"),
    "converge": ("converge", "A.npy", "--schedule", "jordan"),
    "bench": ("bench", "--sizes", "4", "--seconds", "0.01"),
}
NAMES = {
    "compare": "polar_express",
    "design": "local optimisations",
    "polar": "polar decomposition",
    "converge": "5/5",
    "bench": "float64, 4 x 4",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", A)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_shown_on_terminals_only(name, here, monkeypatch):
    quiet = invoke(*COMMANDS[name], FORCE_COLOR="1")
    assert quiet.exit_code == 0, quiet.output
    assert quiet.stderr == ""
    terminal(monkeypatch)
    shown = invoke(*COMMANDS[name])
    assert shown.exit_code == 0
    assert NAMES[name] in shown.stderr
    assert NAMES[name] not in shown.stdout or name == "compare"
    as_json = invoke(*COMMANDS[name], "--json")
    assert as_json.stderr == ""


def test_short_commands_show_nothing(here, monkeypatch):
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    assert invoke(*COMMANDS["polar"]).stderr == ""


def test_no_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.is_terminal()
    monkeypatch.setenv("TERM", "xterm")
    assert not progress.is_terminal()  # pytest captures stderr
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.is_terminal()


def test_the_line_moves_during_one_long_call(monkeypatch):
    terminal(monkeypatch)
    monkeypatch.setattr(progress, "EVERY", 0.005)
    shown = []
    monkeypatch.setattr(progress.Progress, "refresh", lambda self: shown.append(1))
    with progress.progress() as bar:
        bar.begin("a long call")
        before, end = len(shown), time.monotonic() + 20
        while len(shown) < before + 3 and time.monotonic() < end:
            time.sleep(0.005)
    assert len(shown) >= before + 3
    count = len(shown)
    time.sleep(0.05)
    assert len(shown) == count  # the thread has ended
    with progress.progress(timed=True) as bar:
        bar.begin("calls that are timed")
        count = len(shown)
        time.sleep(0.05)
        assert len(shown) == count


def test_the_line_goes_where_a_command_fails(monkeypatch):
    terminal(monkeypatch)
    bars = []

    def fail():
        with progress.progress(2) as bar:
            bars.append(bar)
            bar.begin("one")
            assert bar._bar.live.is_started
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not bars[0]._bar.live.is_started


# -- a terminal ------------------------------------------------------------------------------

SLOW = """
import sys, time
import polarlib
from polarlib.cli import main, progress
progress.AFTER, progress.EVERY = 0.0, 0.01
original, seconds = polarlib.polar, float(sys.argv.pop())
def slow(*args, **options):
    time.sleep(seconds)
    return original(*args, **options)
polarlib.polar = slow
main()
"""


def on_a_terminal(seconds, *args, interrupt=False):
    """Run polarlib polar with stderr on a pseudo-terminal; exit code, stdout, stderr."""
    import pty

    leader, follower = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in PLAIN} | {"TERM": "xterm"}
    command = [sys.executable, "-c", SLOW, *args, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=env)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux, once the process has ended
            break
        if not part:
            break
        seen += part
        if interrupt and b"polar decomposition" in seen:
            process.send_signal(signal.SIGINT)
            interrupt = False
    out, _ = process.communicate(timeout=60)
    os.close(leader)
    return process.returncode, out.decode(), seen.decode()


@posix
@pytest.mark.slow
def test_on_a_terminal(here):
    code, out, err = on_a_terminal(0.5, "polar", "A.npy", "-o", "U.npy")
    assert code == 0
    assert "polar decomposition" in err
    assert "1/4" in err
    assert "\x1b" not in out
    assert "converged" in out
    # The line is erased, and the cursor shown again.
    assert err.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))
    assert re.search(r"\x1b\[\?25l.*\x1b\[\?25h", err, re.DOTALL)
    code, out, err = on_a_terminal(0.3, "polar", "A.npy", "--json")
    assert (code, err) == (0, "")
    assert out.startswith("{")


@posix
@pytest.mark.slow
def test_an_interrupt_leaves_nothing_half(here):
    code, out, err = on_a_terminal(60, "polar", "A.npy", "-o", "U.npy", interrupt=True)
    assert (code, out) == (130, "")
    assert err.rstrip().endswith("polarlib: interrupted")
    assert "\x1b[?25h" in err
    assert sorted(path.name for path in here.iterdir()) == ["A.npy"]
