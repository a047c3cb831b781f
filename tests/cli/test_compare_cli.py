"""polarlib compare: rows, verdict, pictures and refusals."""

from __future__ import annotations

import contextlib
import os
import time
import warnings

import numpy as np
import pytest
from shell import ONE, POLAR, A, document, done, refused

import polarlib
from polarlib import files
from polarlib.arrays.formats import FORMATS
from polarlib.cli import compare, console, everything

pytestmark = pytest.mark.usefixtures("here")

OWN = tuple(everything.own_schedules("bfloat16"))  # in float32 too


# -- compare ----------------------------------------------------------------------------------


def distance_to_u(a, q):
    u, _, vh = np.linalg.svd(a.astype(np.float64), full_matrices=False)
    return np.linalg.norm(q - u @ vh) / np.sqrt(min(a.shape))


def test_compare_is_short(here):
    """At most 16 rows, one sentence, two plots, and no second line of notes."""
    begun = time.process_time()
    text = done("compare", ONE)
    assert time.process_time() - begun < 10
    head, body, verdict, explained = text.split("\n\n")
    assert head == f"{ONE} (10 x 128), bfloat16 (simulated), at most 15 matrix products"
    assert len(body.splitlines()[3:]) == 11
    assert verdict.count(". ") == 0
    assert verdict.endswith(".")
    assert "1 thread" in explained or "threads" in explained
    assert len(list((here / "polarlib-plots").iterdir())) == 2
    assert max(map(len, done("compare", ONE, "--no-plots", COLUMNS="80").splitlines())) <= 80


def test_compare_rows_are_sorted_by_error_at_equal_cost():
    found = document("compare", ONE, "--no-plots")
    *rows, exact = found["rows"]
    errors = [row["distance"] for row in rows]
    assert errors == sorted(errors)
    assert {"auto", "polar_express", "jordan"} <= {row["method"] for row in rows}
    assert exact["method"] == "svd"
    assert exact["distance"] < 1e-3
    a = files.sample_matrices()[ONE].astype(np.float32)
    for row in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", polarlib.ScheduleWarning)
            t = polarlib.measure(a, row["method"], steps=row["steps"], precision="bfloat16")
        assert row["matrix_products"] == t.matmuls[-1] <= 15
        assert row["distance"] == pytest.approx(t.distance[-1], rel=1e-3)
        assert row["orthogonality"] == pytest.approx(t.orthogonality[-1], rel=1e-3)
        assert row["backward_error"] == pytest.approx(t.backward_error[-1], rel=1e-3)
        assert (row["format"], row["simulated"], row["matrix"]) == ("bfloat16", True, ONE)
        s = t.singular_values[-1]
        assert row["smallest_singular_value"] == pytest.approx(s.min(), rel=1e-3)
        assert row["largest_singular_value"] == pytest.approx(s.max(), rel=1e-3)
        assert 0 < row["seconds"] < 10
    # None is left out that is nearer: the others fill up what the three leave.
    nearest = {}
    for name in POLAR:
        whole = polarlib.published.listed(name)
        most = len(whole) if whole.repeat is None else 7
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore", polarlib.ScheduleWarning)
            steps = max(k for k in range(1, most + 1) if whole.truncate(k).matmuls <= 14)
            q = polarlib.orthogonalize(
                a, schedule=name, steps=steps, precision="bfloat16", form="plain"
            )
            nearest[name] = distance_to_u(a, q)
    left_out = [d for name, d in nearest.items() if name not in {r["method"] for r in rows}]
    assert (
        min(left_out)
        >= max(
            e
            for r, e in zip(rows, errors, strict=True)
            if r["method"] not in (*OWN, "polar_express", "jordan")
        )
        * 0.999
    )


def test_compare_verdict_is_of_safe_schedules():
    found = document("compare", "transformer_attention_qkv_early", "--no-plots")
    assert found["rows"][0]["method"] == "cans"  # nearest, and unsafe in this format
    assert not found["rows"][0]["safe"]
    best = next(row for row in found["rows"] if row["safe"])
    assert f"safe in bfloat16, {best['method']} is nearest" in found["verdict"]
    assert "; the default is number " in found["verdict"]
    found = document("compare", ONE, "--no-plots", "--schedule", "cans", "--schedule", "you")
    assert "; cans is not safe (" in found["verdict"]
    assert {"cans", "you"} <= {row["method"] for row in found["rows"]}


def test_compare_takes_designed_schedules(here):
    s = polarlib.design.greedy(1e-2, [5] * 6)
    s.to_json("six.json")
    found = document("compare", "A.npy", "--schedule", "six.json", "--precision", "float32")
    assert found["matmuls"] == 18  # what the file takes is what the others may take
    row = next(row for row in found["rows"] if row["method"] == "six.json")
    q = polarlib.orthogonalize(A.astype(np.float32), schedule=s, form="plain")
    # A is scaled by a power of two first, which leaves the factor and its rounding as they are.
    assert row["distance"] == pytest.approx(distance_to_u(A, q), rel=1e-3, abs=1e-6)
    assert "six.json" in found["verdict"]
    fewer = document("compare", "A.npy", "--schedule", "six.json", "--matmuls", "9", "--no-plots")
    by_name = {row["method"]: row["matrix_products"] for row in fewer["rows"][:-1]}
    assert by_name.pop("six.json") == 18  # a file is not cut
    assert max(by_name.values()) <= 9
    assert document("compare", "A.npy", "--schedule", "auto", "--no-plots")["matmuls"] == 15
    by_name = {row["method"] for row in compared("A.npy", "--no-plots", "--schedule", "six.json")}
    assert "six.json" in by_name


def test_compare_of_many_schedules_has_at_most_16_rows(here):
    for k in range(12):
        polarlib.design.greedy(0.01 + k / 100, [5]).to_json(f"{k}.json")
    many = [word for k in range(11) for word in ("--schedule", f"{k}.json")]
    assert len(document("compare", "A.npy", "--no-plots", *many)["rows"]) <= 16
    assert "at most 11 times" in refused("compare", "A.npy", *many, "--schedule", "11.json")


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("--schedule", "absent.json"), "absent.json: No such file"),
        (("--schedule", "broken.json"), "broken.json"),
        (("--schedule", "jordn"), "did you mean 'jordan'"),
        (("--schedule", "lipschitz_cap"), "has target 'clip'"),
        (("--schedule", "rational.json"), "is rational"),
        (("--precision", "float32", "--precision", "bfloat16"), "add --all"),
        (("--matmuls", "2"), "Invalid value for '--matmuls': "),
        (("--all", "--matmuls", "15"), "must not be given with --all"),
    ],
)
def test_compare_refuses(here, args, hint):
    (here / "broken.json").write_text('{"schema": ')
    polarlib.design.zolotarev(2, 0.1).to_json("rational.json")
    assert hint in refused("compare", "A.npy", *args)
    assert not (here / "polarlib-plots").exists()


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", FORMATS)
def test_compare_in_every_format(name):
    found = document("compare", "A.npy", "--no-plots", "--precision", name)
    assert found["format"] == name
    by_name = {row["method"]: row for row in found["rows"]}
    assert by_name["auto"]["safe"]
    assert by_name["auto"]["distance"] < 0.3
    assert found["verdict"].startswith("Of the ")


def test_compare_of_zero_and_tiny_matrices():
    for a in (np.zeros((3, 2)), np.ones((1, 1)), np.ones((1, 5)), 1e-300 * A):
        np.save("A.npy", a)
        assert len(document("compare", "A.npy")["plots"]) == 2


def test_compare_of_several_matrices_is_with_all():
    assert "add --all" in refused("compare", "--matrix", "all")
    assert "add --all" in refused("compare", "--matrix", ONE, "--matrix", compare.ONE)
    assert document("compare", "--matrix", ONE, "--no-plots")["matrix"] == ONE


def test_compare_draws_large_matrices_by_few_rows(here, monkeypatch):
    monkeypatch.setattr(compare, "ALL_DRAWN", 3)
    drawn = []
    real = polarlib.measure

    def measured(a, schedule, **rest):
        drawn.append(schedule)
        return real(a, schedule, **rest)

    monkeypatch.setattr(polarlib, "measure", measured)
    found = document("compare", "A.npy")
    assert len(drawn) in (4, 5)
    assert len(found["plots"]) == 2
    assert all((here / path).read_bytes().startswith(b"\x89PNG") for path in found["plots"])


@pytest.mark.parametrize("dtype", ["c8", "f8", "i8"])
def test_compare_of_wide_and_complex_matrices(dtype):
    a = (5 * (A + 1j * A[::-1]).T).astype(dtype) if dtype[0] == "c" else (5 * A.T).astype(dtype)
    np.save("A.npy", a)
    found = document("compare", "A.npy", "--no-plots", "--precision", "float64")
    q = polarlib.orthogonalize(a.astype("c16" if dtype[0] == "c" else "f8"), form="plain")
    row = next(row for row in found["rows"] if row["method"] == "auto")
    u, _, vh = np.linalg.svd(a.astype(q.dtype), full_matrices=False)
    assert row["distance"] == pytest.approx(np.linalg.norm(q - u @ vh) / 2, rel=1e-6)


def test_compare_times_the_least_call(monkeypatch):
    def interleaved(functions, seconds, **rest):
        for function in functions.values():
            function()
        return {name: [8.0, 1.0 + k / 100, 9.0] for k, name in enumerate(functions)}

    monkeypatch.setattr(compare, "interleaved", interleaved)
    rows = document("compare", "A.npy", "--no-plots")["rows"]
    assert [row["seconds"] for row in rows] == [1.0 + k / 100 for k in range(11)]


# -- compare --all ----------------------------------------------------------------------------


def compared(*args):
    return document("compare", "--all", *args)["rows"]


def test_compare_has_every_method_and_schedule(here):
    rows = compared("A.npy", "--no-plots")
    keys = [(row["method"], row["format"]) for row in rows]
    expected = [(m, f) for m in everything.METHODS for f in ("float64", "float32")]
    expected += [(s, f) for f in ("float32", "bfloat16") for s in (*OWN, *POLAR)]
    assert keys == expected
    assert set(everything.METHODS) | set(POLAR) == set(polarlib.methods())
    for row in rows:
        assert row["matrix"] == "A.npy"
        assert 0 < row["seconds"] < 60
        assert row["simulated"] is (row["format"] == "bfloat16")
        assert row["kind"] == ("method" if row["method"] in everything.METHODS else "schedule")
        a = A.astype(np.float64 if row["format"] == "float64" else np.float32)
        # What the table calls a row is accepted as its name.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", polarlib.ScheduleWarning)
            t = polarlib.measure(a, row["method"], precision=row["format"])
            if row["kind"] == "schedule":
                polarlib.orthogonalize(a, schedule=row["method"], precision=row["format"])
        assert row["matrix_products"] == t.matmuls[-1]
        assert row["smallest_singular_value"] == pytest.approx(
            t.singular_values[-1].min(), rel=1e-3
        )
    assert [path.name for path in here.iterdir()] == ["A.npy"]


def test_compare_marks_sets_without_safety_factor():
    notes = {
        (row["method"], row["format"]): row["notes"] for row in compared("A.npy", "--no-plots")
    }
    assert "no safety factor" in notes["cans", "bfloat16"][0]
    assert notes["cans", "float32"] == []
    assert notes["polar_express", "bfloat16"] == []
    text = done("compare", "A.npy", "--all", "--no-plots")
    lines = [line.split() for line in text.splitlines()]
    assert ["cans!", "bfloat16*"] in [line[4:6] for line in lines]
    assert ["cans", "float32"] in [line[4:6] for line in lines]
    assert "! schedule 'cans' diverges above" in text
    assert "* simulated number format" in text
    assert "Warning" not in text


def test_compare_tells_of_methods_that_fail():
    a = A.copy()
    a[:, 0] = 0
    np.save("A.npy", a)
    by_key = {(row["method"], row["format"]): row for row in compared("A.npy", "--no-plots")}
    row = by_key["newton", "float64"]
    assert "fell back to the SVD" in row["notes"][0]
    assert row["orthogonality"] is None  # the column of zeros stays one: there is no inverse
    assert by_key["svd", "float64"]["orthogonality"] < 1e-15


def test_compare_at_80_columns_and_piped():
    narrow = done("compare", "A.npy", "--all", "--no-plots", COLUMNS="80")
    assert max(map(len, narrow.splitlines())) <= 80
    assert "matrix: A.npy (6 x 4)" in narrow
    wide = done("compare", "A.npy", "--all", "--no-plots")
    assert sum(line.startswith("A.npy (6 x 4)  ") for line in wide.splitlines()) == len(
        compared("A.npy", "--no-plots")
    )


def test_compare_precisions():
    rows = compared("A.npy", "--no-plots", "--precision", "float16", "--precision", "float64")
    assert {row["format"] for row in rows if row["kind"] == "schedule"} == {"float16", "float64"}
    assert not any(row["simulated"] for row in rows if row["format"] == "float64")


@pytest.mark.parametrize(("scale", "dtype"), [(1e300, "f8"), (1e-300, "f8"), (1e38, "f4")])
def test_compare_of_very_large_and_very_small_matrices(scale, dtype):
    np.save("A.npy", (scale * A).astype(dtype))
    rows = compared("A.npy", "--no-plots", "--precision", "float32")
    assert all(row["orthogonality"] is not None for row in rows)


@pytest.mark.slow
def test_compare_of_other_dtypes_and_shapes():
    for a in (A + 1j * A[::-1], np.ones((1, 1)), np.zeros((2, 3)), np.arange(6).reshape(2, 3)):
        np.save("A.npy", a)
        rows = compared("A.npy", "--no-plots", "--precision", "bfloat16")
        assert {row["method"] for row in rows} == {*OWN, *polarlib.methods()}


def test_compare_plots(here):
    found = document("compare", "--all", "--matrix", ONE, "--precision", "bfloat16")
    assert len(found["plots"]) == 4
    for name in found["plots"]:
        assert name.startswith(os.path.join("polarlib-plots", ONE))
        assert (here / name).read_bytes().startswith(b"\x89PNG")
    text = done(
        "compare",
        "A.npy",
        "--all",
        "--plots",
        "P",
        "--image-format",
        "svg",
        "--precision",
        "float32",
    )
    assert "4 plots are in P" in text
    assert {path.suffix for path in (here / "P").iterdir()} == {".svg"}


@pytest.mark.slow
def test_the_former_name_of_an_option(here):
    """Until 0.3."""
    assert "--format" not in done("compare", "--help")
    args = ("A.npy", "--all", "--plots", "P", "--precision", "float32", "--format", "pdf")
    assert "! --format is now --image-format" in done("compare", *args)
    found = document("compare", *args)
    assert "--image-format" in found["notes"][0]
    assert {path.suffix for path in (here / "P").iterdir()} == {".pdf"}


@pytest.mark.slow
def test_compare_takes_representative_matrices(monkeypatch):
    bundled = files.sample_matrices()
    assert set(console.REPRESENTATIVE) < set(bundled)
    monkeypatch.setattr(compare, "REPRESENTATIVE", (ONE,))
    assert {row["matrix"] for row in compared("--no-plots")} == {ONE}
    monkeypatch.setattr(files, "sample_matrices", lambda: {"x": A, "y": A})
    assert {row["matrix"] for row in compared("--no-plots", "--matrix", "all")} == {"x", "y"}
    assert "'all', 'x', 'y'" in refused("compare", "--all", "--matrix", "z")


def test_timing_is_of_the_median_call(monkeypatch):
    given = []

    def interleaved(functions, seconds, **rest):
        (compute,) = functions.values()
        given.append((seconds, rest))
        compute()
        return {name: [1.0, 8.0, 2.0] for name in functions}

    monkeypatch.setattr(everything, "interleaved", interleaved)
    assert {row["seconds"] for row in compared("A.npy", "--no-plots")} == {2.0}
    assert given[0] == (0.05, {"least": 3, "most": 15})
