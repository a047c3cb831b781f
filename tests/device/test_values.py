"""Every public function on torch tensors of devices that are not there: see values.py."""

import pytest
import test_fuzz

from device import public, running

# By kind of tensor, functions that fail, and why. An entry goes with its cause.
FAILING: dict[str, dict[str, str]] = {"cuda": {}, "meta": {}, "fake": {}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, ()) for kind in FAILING),
        pytest.param("cuda", ("--all",), marks=pytest.mark.slow),
    ],
)
def test_results_are_those_of_the_cpu_or_one_sentence(kind, options):
    running.need("torch")
    found = running.run("values", "--kinds", kind, *options)[kind]
    assert set(found) == set(public.functions())
    failing = {name: calls for name, calls in found.items() if calls}
    assert set(failing) == set(FAILING[kind]), failing


def test_wrong_values_are_seen():
    running.need("torch")
    names = ("polarlib.polar", "polarlib.orthogonalize", "polarlib.updates.ema")
    pattern = f"^({'|'.join(names)})$"
    found = running.run("values", "--kinds", "cuda", "--only", pattern, "--spoil")["cuda"]
    assert set(found) == set(names)
    for calls in found.values():
        for matrices, why in calls.items():
            assert why.startswith("differs"), matrices
        # Zero stays zero, and NaN may be refused: half of the calls are neither.
        assert len(calls) >= 8


def test_functions_that_are_left_out_take_arrays():
    rows = test_fuzz.ROWS
    assert all(public.has_array(rows[name]()) for name in public.APART)
