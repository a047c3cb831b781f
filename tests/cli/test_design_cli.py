"""polarlib schedules and polarlib design: every request, and every wrong one."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from shell import ONE, A, document, done, refused

import polarlib

pytestmark = pytest.mark.usefixtures("here")

# -- schedules --------------------------------------------------------------------------------


def test_schedules_table():
    text = done("schedules")
    for name in polarlib.schedules():
        assert re.search(rf"^\S+ +{name} ", text, re.MULTILINE)
    narrow = done("schedules", COLUMNS="80")
    assert max(map(len, narrow.splitlines())) <= 80
    assert "normalisation: aol" in narrow


def test_schedules_json():
    sets = document("schedules")["schedules"]
    assert [s["name"] for s in sets] == list(polarlib.schedules())
    for found in sets:
        s = polarlib.schedule(found["name"])
        assert found["steps"] == len(s)
        assert found["matrix_products"] == s.matmuls
        assert found["error"] == s.error()
        assert found["slope"] == s.slope
        assert found["divergence_limit"] == s.divergence_limit
    unsafe = {s["name"] for s in sets if not s["safe_in_bfloat16"]}
    assert unsafe == {"cans", "gefen_3", "polar_express_raw"}
    repeat = {s["name"]: s["repeat"] for s in sets}
    assert (repeat["jordan"], repeat["polar_express"], repeat["you"]) == ("forever", "last", None)


@pytest.mark.parametrize("name", polarlib.schedules())
def test_one_schedule_in_full(name):
    s = polarlib.schedule(name)
    text = done("schedules", name)
    for step in s.steps:
        assert all(repr(c) in text for c in step)
    found = document("schedules", name)
    assert [tuple(step) for step in found["coefficients"]] == list(s.steps)
    assert found["source"] == s.source
    assert found["scaling"] == polarlib.published.conventions(name)
    np.testing.assert_allclose(found["images"][-1], s.image(), rtol=1e-15)
    assert max(map(len, done("schedules", name, COLUMNS="80").splitlines())) <= 80


def test_number_of_steps_of_a_schedule():
    assert document("schedules", "jordan", "--steps", "7")["steps"] == 7
    assert "has 5 steps" in refused("schedules", "cans", "--steps", "6")
    assert "needs the name of a set" in refused("schedules", "--steps", "6")
    assert "did you mean 'jordan'" in refused("schedules", "jordn")


# -- design -----------------------------------------------------------------------------------


def test_design_for_a_budget_and_a_format(here):
    budget = ("design", "--lower", "1e-3", "--matmuls", "15")
    found = document(*budget, "--precision", "bfloat16", "--plot", "p.png", "--export", "c.py")
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    steps = [tuple(step["decimal"]) for step in found["steps"]]
    assert list(ast.literal_eval((here / "c.py").read_text(encoding="utf-8"))) == steps
    assert found["figures"]["matmuls"] == sum(row["products"] for row in found["table"]) <= 15
    bound = found["certificate"]
    assert bound["lower"] <= found["figures"]["error"] <= bound["upper"]
    assert (found["plot_file"], found["export_file"]) == ("p.png", "c.py")
    # Safety costs something, and is less than what the published sets spend on it.
    error = document(*budget)["figures"]["error"]
    assert error < found["figures"]["error"] < polarlib.schedule("polar_express").error()


def test_design_table():
    text = done("design", "--lower", "0.01", "--degrees", "3,5", "--name", "two")
    s = polarlib.design.greedy(0.01, [3, 5])
    assert all(repr(c) in text for step in s.steps for c in step)
    assert re.search(r"^name +two$", text, re.MULTILINE)
    first = next(line for line in text.splitlines() if re.match(r" +1 +3 ", line)).split()
    assert first[:4] == ["1", "3", "0.01", "1"]
    assert float(first[4]) == pytest.approx(polarlib.design.best(3, 0.01).complement, rel=1e-4)
    assert int(first[-1]) == 2
    narrow = done("design", "--lower", "0.01", "--steps", "3", COLUMNS="80")
    assert max(map(len, narrow.splitlines())) <= 80


def test_design_agrees_with_the_library():
    for option, s in (
        (("--steps", "3"), polarlib.design.greedy(0.1, [5, 5, 5])),
        (("--matmuls", "8"), polarlib.design.budget(0.1, 8)),
        (
            ("--degrees", "5,3", "--safety", "0.01", "--cushion", "0.2"),
            polarlib.design.greedy(0.1, [5, 3], safety=0.01, cushion=0.2),
        ),
        (
            ("--steps", "4", "--precision", "float16"),
            polarlib.design.for_precision("float16", 0.1, steps=4),
        ),
    ):
        found = document("design", "--lower", "0.1", *option)
        assert [tuple(step["decimal"]) for step in found["steps"]] == list(s.steps)
        assert found["source"] == s.source


@pytest.mark.parametrize(
    ("file", "start"),
    [("a.json", "{"), ("a.h", "/*"), ("a.cuh", "/*"), ("a.tex", "%"), ("a_triton.py", "#")],
)
def test_design_exports(file, start, here):
    text = done("design", "--lower", "0.1", "--steps", "2", "--export", file)
    assert f"Written to {file}." in text
    written = (here / file).read_text(encoding="utf-8")
    assert written.startswith(start)
    assert ("tl.constexpr" in written) == ("triton" in file)
    if file.endswith("json"):
        assert polarlib.Schedule.from_json(here / file).steps == (
            polarlib.design.greedy(0.1, [5, 5]).steps
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lower", "0", "--steps", "2"), "0 < lower < upper"),
        (("--lower", "2", "--steps", "2"), "0 < lower < upper"),
        (("--lower", "0.1"), "one of --matmuls, --steps, --degrees must be given"),
        (("--lower", "0.1", "--steps", "2", "--matmuls", "9"), "got --matmuls and --steps"),
        (("--lower", "0.1", "--steps", "0"), "--steps must be at least 1"),
        (("--lower", "0.1", "--matmuls", "1"), "2"),
        (("--lower", "0.1", "--degrees", "3,4"), "odd"),
        (("--lower", "0.1", "--degrees", "x"), "such as 3,5,5"),
        (("--lower", "0.1", "--steps", "2", "--precision", "bf16"), "did you mean 'bfloat16'"),
        (("--lower", "0.1", "--degrees", "3", "--precision", "bfloat16"), "leave"),
        (("--lower", "0.1", "--matmuls", "9", "--safety", "0.1"), "--safety and --cushion must"),
        (("--lower", "0.1", "--steps", "2", "--export", "a.txt"), "ends in .json or .py"),
        (("--lower", "0.1", "--steps", "2", "--plot", "a.txt"), "ends in .png"),
        (("--lower", "0.1", "--steps", "2", "--plot", "no/a.png"), "no folder"),
    ],
)
def test_design_refuses(options, message, here):
    assert message in refused("design", *options)
    assert {path.name for path in here.iterdir()} == {"A.npy"}


DEGREES = ("--degrees", "3,5")
SPECTRAL = ("--normalisation", "spectral")
UPWARD = ("--lower", "0.1")


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    ("options", "design"),
    [
        (("--band", "0.05", "--steps", "2"), lambda d, a: d.band(2, 0.05)),
        (("--band", "0.7,1.2", *DEGREES), lambda d, a: d.band(2, (0.7, 1.2), degree=[3, 5])),
        (("--band", ".3", "--steps", "2", "--degrees", "3"), lambda d, a: d.band(2, 0.3, degree=3)),
        (("--error", "0.1", *DEGREES), lambda d, a: d.steepest(0.1, [3, 5])),
        (
            ("--error", "0.1", "--precision", "bfloat16", "--steps", "3"),
            lambda d, a: d.for_precision("bfloat16", error=0.1, steps=3),
        ),
        (
            ("--error", "0.3", "--precision", "float16", "--matmuls", "7", *DEGREES),
            lambda d, a: d.for_precision("float16", error=0.3, matmuls=7, degrees=[3, 5]),
        ),
        (("--slope", "12", "--steps", "2"), lambda d, a: d.for_slope(12, [5, 5])),
        (("--spectrum", "values.npy", "--steps", "2"), lambda d, a: d.for_spectrum(a, 2)),
        (("--spectrum", "A.npy", *DEGREES), lambda d, a: d.for_spectrum(a, 2, degree=[3, 5])),
        (
            [
                "--spectrum",
                "A.npy",
                "--steps",
                "1",
                "--bounds",
                "0,1.2",
                "--normalisation",
                "spectral",
            ],
            lambda d, a: d.for_spectrum(a, 1, bounds=(0, 1.2), normalisation="spectral"),
        ),
        (
            ("--tune", "slope", "--start", "start.json", "--bounds", "0.2,1.4"),
            lambda d, a: d.tune("slope", d.greedy(0.05, [5, 5]), bounds=(0.2, 1.4)),
        ),
        (
            ("--tune", "A.npy", "--start", "start.json"),
            lambda d, a: d.tune(d.spectrum(a), d.greedy(0.05, [5, 5])),
        ),
        (("--zolotarev", "2", "--lower", "0.01"), lambda d, a: d.zolotarev(2, 0.01)),
        (("--target", "clip", "--upper", "2", "--steps", "1"), lambda d, a: d.clip(2, [5])),
        (
            ("--target", "power(0.5)", "--lower", "0.1", "--steps", "1"),
            lambda d, a: d.power(0.5, 0.1, [5]),
        ),
        (
            ("--target", "smooth_sign(0.5)", "--degrees", "7"),
            lambda d, a: d.smooth_sign(0.5, [7]),
        ),
        (
            [
                "--target",
                "inverse_root(4)",
                "--lower",
                "0.1",
                "--degrees",
                "5,9",
                "--cushion",
                "0.1",
            ],
            lambda d, a: d.inverse_root(4, 0.1, [5, 9], cushion=0.1),
        ),
        (
            ("--lower", "0.01", "--matmuls", "12", "--form", "gram", "--shape", "512,128"),
            lambda d, a: d.budget(0.01, 12, form="gram", shape=(512, 128)),
        ),
        (
            ("--lower", "0.01", "--matmuls", "9", "--degrees", "3,5", "--upper", "1.1"),
            lambda d, a: d.budget(0.01, 9, degrees=[3, 5], upper=1.1),
        ),
        (
            ("--lower", "0.1", "--matmuls", "9", "--degrees", "3,5", "--precision", "float16"),
            lambda d, a: d.for_precision("float16", 0.1, matmuls=9, degrees=[3, 5]),
        ),
    ],
    ids=lambda value: "" if callable(value) else " ".join(value),
)
def test_design_has_the_words_of_the_library(options, design):
    values = scipy.linalg.svdvals(A)  # as the command does: searches amplify the last digit
    np.save("values.npy", values)
    polarlib.design.greedy(0.05, [5, 5]).to_json("start.json")
    s = design(polarlib.design, values)
    found = document("design", *options, "--export", "s.json")
    got = polarlib.Schedule.from_json("s.json")
    assert got.steps == s.steps
    assert (got.target, got.stride, got.lower) == (s.target, s.stride, s.lower)
    assert found["figures"]["error"] == s.error()
    if s.is_rational:
        assert (found["certificate"], found["table"]) == (None, [])
        assert all(repr(step.scale) in done("design", *options) for step in s.steps)
        return
    assert found["certificate"]["lower"] <= s.error() <= found["certificate"]["upper"]
    text = done("design", *options)
    assert all(repr(c) in text for step in s.steps for c in step)


@pytest.mark.slow
def test_commands_of_the_page(here):
    """Those of docs/guide/design.md, in its order; square brackets are options."""
    page = (Path(__file__).parents[2] / "docs/guide/design.md").read_text(encoding="utf-8")
    block = re.search(r"On the command line.*?```\n(.*?)```", page, re.DOTALL)[1]
    np.save("gradient.npy", polarlib.files.sample_matrices()[ONE])
    shutil.copy(Path(polarlib.__file__).parent / "data/costs.toml", "costs.toml")
    calls = block.splitlines()
    assert len(calls) == 10
    for line in calls:
        for call in {re.sub(r" \[.*?\]", "", line), re.sub(r"[][]", "", line)}:
            more = ["--library", "numpy"] if "--costs" in call else []
            done(*shlex.split(call)[1:], *more)


def test_design_by_the_costs_of_a_device(here):
    with resources.as_file(resources.files("polarlib").joinpath("data/costs.toml")) as costs:
        shutil.copy(costs, "costs.toml")
    args = ("--lower", "0.01", "--matmuls", "9", "--shape", "512,256", "--costs", "costs.toml")
    s = polarlib.design.budget(0.01, 9, shape=(512, 256), costs="costs.toml", library="numpy")
    found = document("design", *args, "--library", "numpy")
    assert [tuple(step["decimal"]) for step in found["steps"]] == list(s.steps)
    assert found["source"] == s.source
    s = polarlib.design.budget(
        0.01, 9, shape=(512, 256), costs="costs.toml", library="numpy", batch=3, form="gram"
    )
    found = document("design", *args, "--library", "numpy", "--batch", "3", "--form", "gram")
    assert found["source"] == s.source
    assert "library" in refused("design", *args)
    assert "absent.toml: No such file" in refused("design", *args[:-1], "absent.toml")


def test_design_tells_of_what_was_not_improved():
    found = document("design", "--tune", "error", "--start", "newton_schulz_5")
    assert found["notes"] == [] or "nothing better" in found["notes"][0]
    polarlib.design.greedy(0.05, [5, 5]).to_json("best.json")
    text = done("design", "--tune", "error", "--start", "best.json")
    assert "! nothing better than" in text


def test_designed_schedules_are_names(here):
    """What design writes is shown, measured, applied and tuned by its path."""
    done("design", "--band", "0.7,1.2", "--steps", "3", "--name", "mine", "--export", "mine.json")
    s = polarlib.Schedule.from_json("mine.json")
    shown = document("schedules", "mine.json")
    assert (shown["name"], shown["steps"], shown["scaling"]) == ("mine.json", 3, "")
    assert [tuple(step) for step in shown["coefficients"]] == list(s.steps)
    text = done("schedules", "mine.json")
    assert re.search(r"^name +mine$", text, re.MULTILINE)
    assert all(repr(c) in text for step in s.steps for c in step)
    assert document("schedules", "mine.json", "--steps", "2")["steps"] == 2
    assert "has 3 steps" in refused("schedules", "mine.json", "--steps", "4")
    found = document("converge", "A.npy", "--schedule", "mine.json")
    expected = polarlib.measure(A, s, precision="float64").to_dict()
    assert found["singular_values"] == expected["singular_values"]
    done("design", "--tune", "slope", "--start", "mine.json", "--bounds", "0.6,1.3")
    polarlib.design.zolotarev(2, 0.1).to_json("rational.json")
    assert "M (x + sum of" in done("schedules", "rational.json")
    assert document("converge", "A.npy", "--schedule", "rational.json")["orthogonality"][-1] < 1e-3
    polarlib.design.clip(2.0, [5]).to_json("clip.json")
    assert document("schedules", "clip.json")["target"] == "clip"
    for command in (("schedules",), ("converge", "A.npy", "--schedule")):
        assert "absent.json" in refused(*command, "absent.json")
        (here / "broken.json").write_text("{")
        assert "broken.json" in refused(*command, "broken.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--lower, for an interval, or one of --band, "),
        (("--steps", "3"), "--lower, for an interval"),
        (
            ("--band", ".1", "--slope", "9", "--steps", "2"),
            "one of --band, --slope must be given, got 2",
        ),
        (
            ("--band", ".1", "--lower", ".1", "--steps", "2"),
            "--lower must not be given with --band",
        ),
        (
            ("--slope", "9", "--safety", ".1", "--steps", "2"),
            "--safety must not be given with --slope",
        ),
        (("--band", ".1"), "or --degrees must be given"),
        (("--band", "x", "--steps", "2"), "--band must be an error such as 0.05 or two limits"),
        (("--band", "1,2,3", "--steps", "2"), "--band must be"),
        (("--band", "1.2,0.7", "--steps", "2"), "1.2"),
        (("--band", "0.9,0.9", "--steps", "2"), "0.9"),
        (("--band", "-1", "--steps", "2"), "-1"),
        (("--band", "nan", "--steps", "2"), "nan"),
        (("--slope", "1", "--steps", "5"), "slope must be a number above 23.17429"),
        (("--slope", "1e9", "--steps", "5"), "at most 2796.568"),
        (("--error", "1.5", "--steps", "5"), "1.5"),
        (("--error", "0.1", "--matmuls", "9"), "must be given with --precision too"),
        (
            ("--error", "0.1", "--lower", "0.1", "--steps", "2"),
            "must be given with --precision too",
        ),
        (("--error", "0.1", "--precision", "bf16", "--steps", "2"), "did you mean 'bfloat16'"),
        (("--spectrum", "nan.npy", "--steps", "2"), "nan.npy: "),
        (("--spectrum", "absent.npy", "--steps", "2"), "absent.npy: no such file"),
        (("--spectrum", "stack.npy", "--steps", "2"), "shape (2, 2, 2)"),
        (("--spectrum", "empty.npy", "--steps", "2"), "shape (0,)"),
        (("--spectrum", "transformer_mlp", "--steps", "2"), "did you mean 'transformer_mlp_"),
        (("--spectrum", "negative.npy", "--steps", "2"), "negative"),
        (("--spectrum", "A.npy", "--steps", "2", "--normalisation", "l2"), "'frobenius'"),
        (("--spectrum", "A.npy", "--steps", "2", "--bounds", "1"), "two numbers such as 0.5,1.1"),
        (("--tune", "slope"), "--tune needs a --start"),
        (("--start", "jordan"), "--lower, for an interval"),
        (("--start", "jordan", "--lower", "0.1", "--steps", "2"), "--start must not be given with"),
        (("--tune", "slop", "--start", "jordan"), "did you mean 'slope'"),
        (("--tune", "slope", "--start", "jordn"), "did you mean 'jordan'"),
        (("--tune", "slope", "--start", "absent.json"), "absent.json"),
        (("--tune", "slope", "--start", "lipschitz_cap"), "target 'clip'"),
        (("--zolotarev", "2"), "--zolotarev needs --lower"),
        (("--zolotarev", "0", "--lower", "0.1"), "r must be"),
        (("--zolotarev", "2", "--lower", "0.1", "--export", "a.h"), "is rational: use 'python'"),
        (("--target", "clip", "--steps", "2"), "--target clip needs --upper"),
        (("--target", "clip(2)", "--steps", "2"), "must have no parameter"),
        (
            ("--target", "clip", "--upper", "2", "--lower", "0.1", "--steps", "2"),
            "--lower must not",
        ),
        (("--target", "power", "--lower", "0.1", "--steps", "2"), "as in power(0.5)"),
        (("--target", "power(x)", "--lower", "0.1", "--steps", "2"), "must have a number"),
        (("--target", "power(2)", "--lower", "0.1", "--steps", "2"), "p must be"),
        (("--target", "polar", "--lower", "0.1", "--steps", "2"), "unknown --target 'polar'"),
        (("--target", "power(0.5", "--lower", "0.1", "--steps", "2"), "unknown --target"),
        (
            ("--lower", "0.1", "--steps", "2", "--form", "gram"),
            "--form must be given with --matmuls",
        ),
        (("--lower", "0.1", "--matmuls", "9", "--form", "gra"), "'plain' or 'gram'"),
        (("--lower", "0.1", "--matmuls", "9", "--shape", "9"), "two sizes such as 1024,256"),
        (("--lower", "0.1", "--steps", "3", "--degrees", "3,5"), "one degree or 3"),
    ],
)
def test_design_refuses_other_requests(options, message, here):
    np.save("nan.npy", [1.0, np.nan])
    np.save("negative.npy", [1.0, -0.5])
    np.save("stack.npy", np.ones((2, 2, 2)))
    np.save("empty.npy", np.ones(0))
    before = {path.name for path in here.iterdir()}
    assert message in refused("design", *options)
    assert {path.name for path in here.iterdir()} == before
