"""Traces: files that read back bit for bit, and what is no trace."""

import csv
import dataclasses
import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import polarlib
from polarlib import Trace

A = np.random.default_rng(4).standard_normal((10, 6))
FIELDS = [f.name for f in dataclasses.fields(Trace)]


def same(a, b):
    """Whether two traces are equal, bit for bit."""
    return all(
        u.dtype == v.dtype and u.shape == v.shape and u.tobytes() == v.tobytes()
        if isinstance(u, np.ndarray)
        else type(u) is type(v) and u == v
        for u, v in ((getattr(a, name), getattr(b, name)) for name in FIELDS)
    )


@pytest.fixture(params=["float64", "bfloat16", "wide", "method", "one column", "diverging"])
def trace(request):
    match request.param:
        case "method":
            return polarlib.measure(A, "newton")
        case "wide":
            return polarlib.measure(A.T, "jordan", steps=4, form="gram")
        case "one column":
            return polarlib.measure(A[:, :1], "cubic5")
        case "diverging":
            with np.errstate(all="ignore"):
                return polarlib.measure(np.diag([1.0, 0.0]), "newton")
        case _:
            return polarlib.measure(A, "polar_express", precision=request.param)


def test_csv(trace, tmp_path):
    trace.to_csv(tmp_path / "t.csv")
    assert same(Trace.from_csv(tmp_path / "t.csv"), trace)
    assert same(Trace.from_csv(str(tmp_path / "t.csv")), trace)


def test_dict(trace):
    back = Trace.from_dict(json.loads(json.dumps(trace.to_dict(), allow_nan=False)))
    assert same(back, trace) or not np.isfinite(trace.singular_values).all()
    assert Trace.from_dict(trace.to_dict()).to_dict() == trace.to_dict()


def test_files_of_several_traces_have_equal_columns(tmp_path):
    rows = []
    for precision in ("float64", "bfloat16"):
        path = tmp_path / f"{precision}.csv"
        polarlib.measure(A, "jordan", precision=precision).to_csv(path)
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows += list(table)
    assert len({tuple(row) for row in rows}) == 1
    assert {row["precision"] for row in rows} == {"float64", "bfloat16"}
    assert {row["simulated"] for row in rows} == {"True", "False"}


def test_plots_of_traces_that_were_read(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    from polarlib import plot

    for precision in ("float64", "float16"):
        polarlib.measure(A, "jordan", precision=precision).to_csv(tmp_path / f"{precision}.csv")
    read = [Trace.from_csv(path) for path in sorted(tmp_path.iterdir())]
    plot.compare(read)
    plt.close("all")


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.text(max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_numbers_and_names(tmp_path_factory, data, steps, k, name):
    path = tmp_path_factory.mktemp("traces") / "t.csv"
    draw = lambda *shape: np.array(  # noqa: E731
        data.draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))
    ).reshape(shape)
    t = Trace(
        method=name,
        precision="float16",
        form="",
        shape=(k, k + 2),
        simulated=True,
        matmuls=np.arange(steps) * 3,
        singular_values=draw(steps, k),
        alignment=draw(steps, k),
        orthogonality=draw(steps),
        backward_error=draw(steps),
        distance=draw(steps),
    )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return
    if "\0" in name:  # which the csv module does not read
        return
    t.to_csv(path)
    back = Trace.from_csv(path)
    assert back.method == name
    for field in ("singular_values", "alignment", "orthogonality", "distance"):
        got, wanted = getattr(back, field), getattr(t, field)
        assert np.array_equal(np.isnan(got), np.isnan(wanted))
        finite = ~np.isnan(wanted)
        assert got[finite].tobytes() == wanted[finite].tobytes()  # signs of zeros too


def lines(tmp_path):
    path = tmp_path / "t.csv"
    polarlib.measure(A, "jordan", steps=2).to_csv(path)
    return path, path.read_text(encoding="utf-8").splitlines()


def changed(kind, text):
    head, *rows = text
    match kind:
        case "empty":
            return []
        case "no rows":
            return [head]
        case "old":  # as 0.1 wrote them
            return [",".join(line.split(",")[:5]) for line in text]
        case "a column more":
            return [f"{head},mood", *(f"{row},good" for row in rows)]
        case "no alignment":
            return [line.replace("alignment_6", "beta_6") for line in text]
        case "twice":
            return [head.replace("sigma_2", "sigma_1"), *rows]
        case "short row":
            return [head, rows[0].rpartition(",")[0], *rows[1:]]
        case "order":
            return [head, *rows[::-1]]
        case "two traces":
            return [head, *rows, *rows]
        case "other trace":
            return [head, rows[0], rows[1].replace("jordan", "you"), rows[2]]
        case "no number":
            return [head, rows[0], "1,three" + rows[1][rows[1].index(",", 2) :], rows[2]]
        case "shape":
            return [line.replace("10x6", "10x5") for line in text]
        case "no shape":
            return [line.replace("10x6", "10") for line in text]
        case "simulated":
            return [line.replace("False", "no") for line in text]
        case "quote":
            return [head, '"' + rows[0]]
        case "zeros":
            return ["\0" * 100]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "is empty"),
        ("no rows", "has no steps"),
        ("old", "the columns method, .* are missing"),
        ("a column more", "and no others"),
        ("no alignment", "alignment_1 to alignment_6"),
        ("twice", "columns occur twice"),
        ("short row", r"row 2: expected 22 cells, got 21"),
        ("order", "row 2: expected step 0"),
        ("two traces", "row 5: expected step 3 .* holds one trace"),
        ("other trace", "row 3: .* holds one trace"),
        ("no number", "row 3: invalid literal"),
        ("shape", r"singular_values must have the shape \(3, 5\)"),
        ("no shape", "expected a shape|two integers"),
        ("simulated", "True or False for simulated"),
        ("quote", "not a CSV file"),
        ("zeros", "missing|not a CSV"),
    ],
)
def test_files_that_are_no_traces(kind, said, tmp_path):
    path, text = lines(tmp_path)
    path.write_text("".join(f"{line}\n" for line in changed(kind, text)), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as error:
        Trace.from_csv(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_other_files(tmp_path):
    with pytest.raises(OSError, match="absent"):
        Trace.from_csv(tmp_path / "absent.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes\.csv: is not a CSV file in UTF-8"):
        Trace.from_csv(tmp_path / "bytes.csv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mood": 1}, "unknown key 'mood'"),
        ({"form": None}, "form must be text"),
        ({"shape": [10]}, "shape must be two integers"),
        ({"simulated": 1}, "simulated must be True or False"),
        ({"matmuls": [0.5, 1, 2]}, "matmuls must be an integer"),
        ({"distance": [1, 2]}, r"distance must have the shape \(3,\)"),
        ({"distance": ["a", 1, 2]}, "distance must be a list of numbers"),
        ({"distance": 3}, "distance must be a list of numbers"),
        ({"alignment": [[1, 2], [1]]}, "alignment must be lists of equal length"),
        ({"alignment": [1, 2, 3]}, "alignment must be a list of numbers"),
        ({"matmuls": []}, "must have the shape"),
    ],
)
def test_dicts_that_are_no_traces(change, said):
    d = polarlib.measure(A, "jordan", steps=2).to_dict()
    with pytest.raises((ValueError, TypeError), match=said):
        Trace.from_dict(d | change)
    del d["alignment"]
    with pytest.raises(ValueError, match="lacks the key 'alignment'"):
        Trace.from_dict(d)
    with pytest.raises(TypeError, match="d must be a dict"):
        Trace.from_dict([1])


def test_representations(trace):
    text = repr(trace)
    assert "\n" not in text
    assert text.startswith(f"Trace({trace.method!r}: {trace.shape[0]} x {trace.shape[1]} in ")
    assert f"{trace.matmuls[-1]} products, error {trace.distance[-1]:.2e}" in text
    page = trace._repr_html_()
    assert page.startswith(f"<table><caption>Trace of {trace.method}")
    assert f"<td>{trace.n_steps}</td>" in page
