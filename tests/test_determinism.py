"""What docs/guide/determinism.md promises: equal bits, equal to rounding, settings left alone."""

from __future__ import annotations

import decimal
import hashlib
import importlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import verbs
from conftest import library
from threadpoolctl import threadpool_info, threadpool_limits

import polarlib
from polarlib import design

ROOT = Path(__file__).resolve().parent.parent
THREADS = 16
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24}

every_library = pytest.mark.parametrize(
    "name", ["numpy", "torch", pytest.param("jax", marks=pytest.mark.slow)]
)


def calls_of(name: str) -> dict[str, verbs.Call]:
    """Calls of one library, those on the host alone among NumPy's."""
    found = verbs.on_arrays(library(name).asarray)
    if name == "jax":  # each is compiled, for seconds
        return dict(list(found.items())[::3])
    return found | verbs.on_host() if name == "numpy" else found


def test_every_public_function_has_a_call():
    """A function that computes and has none is not tested here."""
    known = {name.partition(".")[0] for name in (*verbs.on_arrays(), *verbs.on_host())}
    known |= {"polar_tall"}  # below
    functions = {n for n in polarlib.__all__ if type(getattr(polarlib, n)).__name__ == "function"}
    assert functions - known == set()


# -- equal bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [8, pytest.param(1, marks=pytest.mark.slow)])
@every_library
def test_same_call_and_many_threads_give_the_same_bits(name, share):
    """Twice in one thread, then from 16 threads at once, each in an order of its own.

    A thread makes one call of `share`: each call is made by two threads or all.
    """
    calls = calls_of(name)
    wanted = {k: verbs.bits(f()) for k, f in calls.items()}
    costly = [k for k in calls if k.startswith(("design.", "default_schedule", "measure."))]
    barrier = threading.Barrier(THREADS)

    def run(seed: int) -> list[str]:
        order = [k for k in calls if k not in costly][seed % share :: share]
        order += costly[seed % THREADS :: THREADS]
        random.Random(seed).shuffle(order)
        barrier.wait()
        return [k for k in order if verbs.bits(calls[k]()) != wanted[k]]

    with ThreadPoolExecutor(THREADS) as pool:
        assert [k for wrong in pool.map(run, range(THREADS)) for k in wrong] == []


FIRST = (
    *("polar.auto", "polar.qdwh", "orthogonalize.gram", "orthogonalize.float8", "norms.fanion"),
    *("top_singular.randomized", "design.zolotarev.4", "design.best.50", "certify", "schedules"),
)
SCRIPT = """
import hashlib, sys, threading
from concurrent.futures import ThreadPoolExecutor
root, *names = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]
import verbs

calls = {**verbs.on_arrays(), **verbs.on_host()}
barrier = threading.Barrier(16)

def run(i):
    order = names[i % len(names):] + names[:i % len(names)]
    barrier.wait()
    found = {k: verbs.bits(calls[k]()) for k in order}
    return [found[k] for k in names]

with ThreadPoolExecutor(16) as pool:
    first, *others = pool.map(run, range(16))
assert all(other == first for other in others)
print(hashlib.sha256(repr(first).encode()).hexdigest())
"""


def test_another_process_whose_first_calls_come_from_many_threads():
    """What is looked up once has no race; neither hash seeds nor processes get into a result."""
    calls = {**verbs.on_arrays(), **verbs.on_host()}
    wanted = hashlib.sha256(repr([verbs.bits(calls[k]()) for k in FIRST]).encode()).hexdigest()
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(ROOT), *FIRST],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == wanted


def test_designs_in_threads_and_the_digits_of_others():
    """Contexts of mpmath are the library's own: another thread may change the global one."""
    jobs = [(5, 0.1, d) for d in (15, 40, 90, 300)] * 4
    wanted = [verbs.bits(design.best(n, low, digits=d)) for n, low, d in jobs]
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for mpmath.mp.dps in (5, 15, 200):
                mpmath.mp.exp(1)

    other = threading.Thread(target=disturb)
    before = mpmath.mp.dps
    other.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda j: verbs.bits(design.best(*j[:2], digits=j[2])), jobs))
    finally:
        stop.set()
        other.join()
        mpmath.mp.dps = before
    assert found == wanted


def test_torch_settings_of_other_threads(torch):
    """Autocast and gradient modes belong to a thread, the default dtype to the process."""
    x = torch.tensor(verbs.gaussian(60, 40), dtype=torch.float32)
    calls = {
        "polar": lambda: polarlib.polar(x),
        "orthogonalize": lambda: polarlib.orthogonalize(x, precision="float32"),
        "top_singular": lambda: polarlib.top_singular(x, 2),
    }
    wanted = {k: verbs.bits(f()) for k, f in calls.items()}

    def run(i: int) -> list[str]:
        if i % 4 == 0:
            with torch.autocast("cpu", torch.bfloat16):
                return [k for k, f in calls.items() if verbs.bits(f()) != wanted[k]]
        if i % 4 == 1:
            with torch.inference_mode():
                return [k for k, f in calls.items() if verbs.bits(f()) != wanted[k]]
        return [k for k, f in calls.items() if verbs.bits(f()) != wanted[k]]

    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with ThreadPoolExecutor(8) as pool:
            assert [k for wrong in pool.map(run, range(8)) for k in wrong] == []
    finally:
        torch.set_default_dtype(before)


@pytest.mark.slow  # compilation
def test_jax_settings_of_other_threads():
    jax = pytest.importorskip("jax")
    library("jax")
    x = jax.numpy.asarray(verbs.gaussian(60, 40), dtype="float32")
    contexts = [
        lambda: jax.default_matmul_precision("bfloat16"),
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: np.errstate(all="warn"),
    ]
    wanted = verbs.bits(polarlib.polar(x)), verbs.bits(polarlib.orthogonalize(x))

    def run(i: int) -> bool:
        with contexts[i % 4]():
            return (verbs.bits(polarlib.polar(x)), verbs.bits(polarlib.orthogonalize(x))) == wanted

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_dask_scheduler_does_not_count(workers):
    """Sums over blocks have one order, whichever block is done first."""
    dask = pytest.importorskip("dask")
    a = verbs.gaussian(600, 12)
    results = []
    for scheduler in ("synchronous", "threads"):
        x = importlib.import_module("dask.array").from_array(a, chunks=(50, 12))
        with dask.config.set(scheduler=scheduler, num_workers=workers):
            found = polarlib.polar_tall(x)
            results.append((verbs.bits(np.asarray(found.unitary)), verbs.bits(found.hermitian)))
    assert results[0] == results[1]


def test_random_directions_come_from_the_generator_given():
    x = verbs.gaussian(6, 4)
    once, again, other = (
        polarlib.norms.random_spectrum(x, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert verbs.bits(once) == verbs.bits(again) != verbs.bits(other)


# -- equal to rounding --------------------------------------------------------------------------


def distance(one: Any, other: Any) -> float:
    """Largest difference over the largest entry, in unit roundoffs."""
    one, other = (np.asarray(x) for x in (one, other))
    return float(np.max(np.abs(one - other)) / np.max(np.abs(one)) / UNIT[one.dtype.name])


@pytest.mark.thinned(2)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_layout_stacks_and_threads_change_rounding_only(name, dtype):
    """Well-conditioned matrices: results differ by rounding, amplified by little."""
    lib = library(name)
    a = polarlib.testing.with_singular_values(np.linspace(2, 1, 90), 120, 90).astype(dtype)
    shifted = np.empty(a.size + 1, dtype)[1:].reshape(a.shape)
    shifted[...] = a
    convert = lib.xp.from_numpy if name == "torch" else (lambda x: x)
    functions = {
        "polar": lambda x: polarlib.polar(x).unitary,
        "hermitian": lambda x: polarlib.polar(x).hermitian,
        "orthogonalize": lambda x: polarlib.orthogonalize(x, schedule="polar_express"),
    }
    for f in functions.values():
        with threadpool_limits(limits=1):
            wanted = lib.to_numpy(f(convert(a)))
            others = [
                f(convert(np.asfortranarray(a))),
                f(convert(shifted)),
                f(convert(np.stack([a, 2 * a])))[0],
            ]
        with threadpool_limits(limits=2):
            others.append(f(convert(a)))
        for other in others:
            assert distance(wanted, lib.to_numpy(other)) < 50 * np.sqrt(90)


def test_costs_choose_methods(tmp_path, monkeypatch):
    """A file of costs may change the method, and so the rounding, but not what is promised."""
    a = polarlib.testing.with_singular_values(np.geomspace(2, 1e-3, 330), 330, 330)
    first = polarlib.polar(a)
    text = (Path(polarlib.__file__).parent / "data" / "costs.toml").read_text("utf-8")
    path = tmp_path / "costs.toml"
    path.write_text(re.sub(r"(?m)^svd = \[.*\]$", cheap, text), "utf-8")
    monkeypatch.setenv("POLARLIB_COSTS", str(path))
    second = polarlib.polar(a)
    assert (first.method, second.method) == ("hybrid", "svd")
    assert 0 < distance(first.unitary, second.unitary) < 2e3 * np.sqrt(330)
    polarlib.testing.assert_polar(a, second.unitary, second.hermitian)


def cheap(line: re.Match[str]) -> str:
    """The line of a kernel's costs, a thousandth of them."""
    return "svd = [" + ", ".join(f"{float(v) / 1000}" for v in line[0][7:-1].split(",")) + "]"


# -- settings and generators of the process -----------------------------------------------------


def state() -> dict[str, Any]:
    """Settings of the process and the thread that a library could change."""
    found: dict[str, Any] = {
        "random": random.getstate(),
        "numpy.random": repr(np.random.get_state()),  # noqa: NPY002
        "errstate": np.geterr(),
        "printoptions": np.get_printoptions(),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "mpmath": (mpmath.mp.prec, mpmath.iv.prec),
        "decimal": repr(decimal.getcontext()),
        "pools": [(p["filepath"], p["num_threads"]) for p in threadpool_info()],
        "signals": [signal.getsignal(s) for s in signal.valid_signals()],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
    }
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["torch"] = (
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.matmul.fp32_precision,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
        )
    if "jax" in sys.modules:
        found["jax"] = dict(sys.modules["jax"].config.values)
    if "matplotlib" in sys.modules:
        matplotlib = sys.modules["matplotlib"]
        found["matplotlib"] = repr(dict(matplotlib.rcParams))
    return found


@every_library
def test_settings_and_generators_of_the_process_are_left_alone(name):
    """None of the calls draws from a global generator, or leaves a setting changed."""
    calls = calls_of(name)
    importlib.import_module("scipy.optimize")  # what imports do is theirs
    before = state()
    for f in calls.values():
        f()
    after = state()
    assert {k for k in before if before[k] != after[k]} == set()


def test_seeds_of_the_process_do_not_count():
    calls = {k: f for k, f in verbs.on_arrays().items() if k.startswith(("polar.", "top_"))}
    before = np.random.get_state()  # noqa: NPY002
    found = []
    try:
        for seed in (1, 2):
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            found.append({k: verbs.bits(f()) for k, f in calls.items()})
    finally:
        np.random.set_state(before)  # noqa: NPY002
    assert found[0] == found[1]
