"""What a newcomer gets wrong: one line with the remedy, at once, from functions and commands."""

from __future__ import annotations

import re

import numpy as np
import pytest
from typer.testing import CliRunner

import polarlib
from polarlib import design, files, norms
from polarlib.cli import app

A = np.eye(3)
MATRIX = {
    "polar": polarlib.polar,
    "orthogonalize": polarlib.orthogonalize,
    "nearest_orthogonal": polarlib.nearest_orthogonal,
    "measure": lambda a: polarlib.measure(a, "jordan"),
    "lmo": norms.spectral().lmo,
    "align": lambda a: polarlib.align(a, A),
    "sqrtm": polarlib.sqrtm,
    "top_singular": lambda a: polarlib.top_singular(a, 1),
}
ARRAYS = {
    "strings": (np.array([["1", "2"]]), "dtype"),
    "objects": (np.array([[object(), 1]], dtype=object), "dtype"),
    "dates": (np.array([["2020-01-01"]], dtype="M8[D]"), "dtype"),
    "records": (np.zeros((2, 2), dtype=[("a", "f8")]), "dtype"),
    "nothing": (None, "array of numbers"),
    "text": ("A.npy", "array of numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "not a rectangular array"),
    "vector": ([1.0, 2.0], r"reshape a vector"),
    # Of one number, repeated without storage.
    "huge": (np.broadcast_to(1.0, (10**6, 10**6)), r"7451 GiB, more than the memory"),
}
REQUESTS = {
    "steps": (lambda: polarlib.orthogonalize(A, steps=10**6), "leave steps out, or use polar"),
    "measure": (lambda: polarlib.measure(A, "jordan", steps=10**6), "steps must be at most 300"),
    "greedy": (lambda: design.greedy(1e-3, [5] * 1000), "at most 300 members"),
    "degree": (lambda: design.minimax(1001, 1e-3), "the degree must be at most 101"),
    "band": (lambda: design.band(10**6, 0.1), "steps must be at most 300"),
    "format": (lambda: design.for_precision("bfloat16", 1e-3, matmuls=10**5), "at most 192"),
    "rank": (lambda: polarlib.polar(np.zeros((1, 10**6))), "pass side='left'"),
    "side": (lambda: polarlib.polar(A, side="up"), "side must be 'right' or 'left', got 'up'"),
    "method": (lambda: polarlib.polar(A, method="sdv"), r"did you mean 'svd'\?"),
    "schedule": (lambda: polarlib.schedule("jordon"), r"did you mean 'jordan'\?"),
}


def assert_one_line(text: str, pattern: str) -> None:
    assert "\n" not in text
    assert re.search(pattern, text), text


@pytest.mark.parametrize("kind", list(ARRAYS))
@pytest.mark.parametrize("name", list(MATRIX))
def test_what_is_no_matrix(name, kind):
    array, pattern = ARRAYS[kind]
    with pytest.raises((TypeError, ValueError, MemoryError)) as caught:
        MATRIX[name](array)
    assert_one_line(str(caught.value), pattern)


@pytest.mark.parametrize("name", list(REQUESTS))
def test_what_cannot_be_meant(name):
    call, pattern = REQUESTS[name]
    with pytest.raises((ValueError, MemoryError)) as caught:
        call()
    assert_one_line(str(caught.value), pattern)


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        ("polar missing.npy", "no such file"),
        ("polar transformer_mlp_inn_late", "did you mean 'transformer_mlp_in_late'"),
        ("polar text.txt", "unknown file type '.txt'; known: .npy"),
        ("polar text.npy", "this is not a .npy file"),
        ("polar short.npy", "damaged or cut short"),
        ("polar words.npy", "not numbers; save it again"),
        ("polar vector.npy", "reshape it"),
        ("polar several.npz", "choose one, as in several.npz:a"),
        ("polar eye.npy -o u.txt", "name a file that ends in .npy"),
        ("polar eye.npy --method sdv", "did you mean 'svd'"),
        ("converge eye.npy --steps 1000000", "--steps"),
        ("design --lower 0.001 --matmuls 10000", "--matmuls"),
        ("design --lower 2 --steps 3", "lower"),
        ("schedules jordon", "did you mean 'jordan'"),
        ("polars eye.npy", "polar"),
    ],
)
def test_wrong_commands(tmp_path, monkeypatch, args, pattern):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("1 2 3")
    (tmp_path / "text.npy").write_text("1 2 3")
    np.save("eye.npy", A)
    (tmp_path / "short.npy").write_bytes((tmp_path / "eye.npy").read_bytes()[:-8])
    np.save("words.npy", np.array([["1", "2"]]))
    np.save("vector.npy", np.ones(3))
    np.savez("several.npz", a=A, b=A)
    shown = CliRunner().invoke(app, args.split())
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert_one_line(shown.stderr.rstrip("\n"), pattern)
    assert files.names("several.npz") == ("a", "b")
