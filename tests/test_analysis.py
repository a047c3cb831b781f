"""The studies: every one runs quickly and reproduces its figures; the frame judges rightly."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

ANALYSIS = Path(__file__).resolve().parents[1] / "analysis"
STUDIES = sorted(path.parent.name for path in ANALYSIS.glob("*/run.py"))


def load(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def common():
    path = sys.path[:]  # which the scripts extend
    yield load(ANALYSIS / "common.py", "common")
    sys.path[:] = path
    del sys.modules["common"]


def test_there_are_studies():
    assert len(STUDIES) >= 4


@pytest.mark.thinned(len(STUDIES))
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_reproduces_its_figures(name, common, tmp_path):
    module = load(ANALYSIS / name / "run.py", f"analysis_{name}")
    script = ANALYSIS / name / "run.py"
    figures = common.run(module.study, script, tmp_path, quick=True)
    outside = [(f["name"], f["value"], f["published"]) for f in figures if f["within"] is False]
    assert not outside
    assert any(f["within"] for f in figures)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["study"] == name
    assert result["figures"] == figures
    named = [t["csv"] for t in result["tables"]]
    named += [p[kind] for p in result["plots"] for kind in ("png", "pdf")]
    assert sorted([*named, "result.json"]) == sorted(p.name for p in tmp_path.iterdir())
    assert result["plots"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_told(name):
    text = (ANALYSIS / name / "README.md").read_text(encoding="utf-8")
    assert f"python analysis/{name}/run.py" in text
    assert text.count("\n") < 120


@pytest.mark.parametrize("name", [*STUDIES, "common"])
def test_studies_use_the_public_interface(name):
    path = ANALYSIS / "common.py" if name == "common" else ANALYSIS / name / "run.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        for found in names:
            if found.startswith(("polarlib.", "plot.", "design.")):
                assert "._" not in found, f"{path}: {found}"


# -- the frame -------------------------------------------------------------------------------


def figure(name="a", published=1.0, tolerance=None, **more):
    entry = {"name": name, "where": "Table 1", "why": "digits", "quick": True} | more
    return entry | {"published": published, "tolerance": tolerance or {"absolute": 0.1}}


@pytest.fixture
def script(tmp_path):
    """A function that writes an expected.json and returns the run.py that lies beside it."""

    def write(*figures, **more):
        folder = tmp_path / "toy"
        folder.mkdir(exist_ok=True)
        told = {"title": "Toy", "source": "Nobody (2026)", "figures": list(figures)} | more
        (folder / "expected.json").write_text(json.dumps(told), encoding="utf-8")
        return folder / "run.py"

    return write


@pytest.mark.parametrize(
    ("published", "tolerance", "value", "within"),
    [
        (1.0, {"absolute": 0.1}, 1.1, False),  # the double above
        (1.0, {"absolute": 0.1}, 1.09, True),
        (1.0, {"absolute": 0.1}, 0.8, False),
        (1.0, {"absolute": 0}, 1, True),
        (-2.0, {"relative": 0.1}, -2.1, True),
        (-2.0, {"relative": 0.1}, 2.0, False),
        (1e-11, {"factor": 3}, 2.9e-11, True),
        (1e-11, {"factor": 3}, 3.4e-12, True),
        (1e-11, {"factor": 3}, 3.3e-12, False),
        (1e-11, {"factor": 3}, -1e-11, False),
        (1e-11, {"factor": 3}, 0.0, False),
        (None, {"at_most": 2}, 2, True),
        (None, {"at_most": 2}, 2.1, False),
        (5.0, {"at_least": 2}, 1.9, False),
        (None, {"at_least": 1, "at_most": 2}, [1, 2], True),
        (None, {"at_least": 1, "at_most": 2}, [1, 2.1], False),
        ([1, 2], {"absolute": 0.5}, [1.2, 2.2], True),
        ([1, 2], {"absolute": 0.5}, [1.2, 3.2], False),
        ([1, 2], {"absolute": 0.5}, [1.2], False),
        ([1, 2], {"absolute": 9.0}, 1.0, False),
        ([1, 2], {"absolute": 9.0}, [1.0, math.nan], False),
        (1.0, {"absolute": 9.0}, math.nan, False),
        (None, {"at_least": 1}, math.inf, False),
        (None, {"at_most": 1}, -math.inf, False),
        (None, {"at_most": 1}, [], False),
    ],
)
def test_tolerances(published, tolerance, value, within, common, script, tmp_path):
    run_py = script(figure("a", published, tolerance))
    (judged,) = common.run(lambda out, quick: out.figure("a", value), run_py, tmp_path, quick=True)
    assert judged["within"] is within


def test_quick_leaves_out_and_missing_is_outside(common, script, tmp_path):
    run_py = script(figure("a"), figure("b", quick=False), figure("c"))
    seen = []

    def study(out, quick):
        seen.append(quick)
        out.figure("a", 1.0)

    def judged(quick):
        figures = common.run(study, run_py, tmp_path / "out", quick=quick)
        return [f["within"] for f in figures]

    assert judged(True) == [True, None, False]
    assert judged(False) == [True, False, False]
    assert seen == [True, False]


def everything(out, quick):
    fig, (ax,) = sys.modules["common"].panels()
    ax.plot([1, 2], label="a line")
    ax.legend()
    out.figure("a", 1.0)
    out.plot("picture", fig, "A line.")
    out.table("numbers", ["k", "value"], [(1, 0.1), (2, 0.2)])
    out.note("One\n  note.")


def test_files_are_the_same_bytes_again(common, script, tmp_path):
    run_py = script(figure("a"))
    for name in ("one", "two"):
        common.run(everything, run_py, tmp_path / name, quick=False)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == ["numbers.csv", "picture.pdf", "picture.png", "result.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert b"/CreationDate" not in (tmp_path / "one" / "picture.pdf").read_bytes()
    assert (tmp_path / "one" / "numbers.csv").read_text() == "k,value\n1,0.1\n2,0.2\n"
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["notes"] == ["One note."]
    assert result["command"] == "python analysis/toy/run.py"
    assert str(tmp_path) not in (tmp_path / "one" / "result.json").read_text()


def test_a_study_that_fails_writes_nothing(common, script, tmp_path):
    def study(out, quick):
        everything(out, quick)
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        common.run(study, script(figure("a")), tmp_path / "out", quick=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("study", "match"),
    [
        (lambda out, quick: out.figure("z", 1), "'z' is not in expected.json; known: a"),
        (lambda out, quick: [out.figure("a", 1) for _ in range(2)], "handed in before"),
        (lambda out, quick: [out.table("t", ["x"], []) for _ in range(2)], "t.csv was handed in"),
        (lambda out, quick: out.table("t", ["x"], [(1, 2)]), "has 1 columns, got the row"),
        (lambda out, quick: out.table("../t", ["x"], []), "no file name"),
    ],
)
def test_bad_studies(study, match, common, script, tmp_path):
    with pytest.raises(ValueError, match=match):
        common.run(study, script(figure("a")), tmp_path / "out", quick=True)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (figure(tolerance={"about": 1}), "'a': tolerance"),
        (figure(tolerance={"absolute": 1, "relative": 1}), "'a': tolerance"),
        (figure(tolerance={"absolute": "1"}), "'a': tolerance"),
        (figure(tolerance={"absolute": math.inf}), "'a': tolerance"),
        (figure(published=None), "'a' has nothing published"),
        (figure(source_kind="hearsay"), "'hearsay' is none of"),
        ({"name": "a"}, "'a' needs exactly"),
        (figure(colour="red"), "'a' needs exactly"),
    ],
)
def test_bad_expectations(entry, match, common, script, tmp_path):
    with pytest.raises(ValueError, match=match):
        common.run(everything, script(entry), tmp_path / "out", quick=True)


def test_bad_expectations_of_a_whole_study(common, script, tmp_path):
    with pytest.raises(ValueError, match="comes twice"):
        common.expected(script(figure("a"), figure("a")).with_name("expected.json"))
    with pytest.raises(ValueError, match="title, source and figures"):
        common.expected(script(extra=1).with_name("expected.json"))


@pytest.mark.parametrize(
    ("value", "arguments", "code"),
    [(1.0, ["--quick"], 0), (2.0, ["--quick"], 1), (2.0, [], 1), (1.0, ["--fast"], 2)],
)
def test_command_line(value, arguments, code, common, script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as end:
        common.main(
            lambda out, quick: [out.figure("a", value), out.figure("b", 1.0)],
            script(figure("a"), figure("b")),
        )
    assert int(end.value.code) == code
    assert (tmp_path / "analysis-output" / "toy" / "result.json").exists() == (code < 2)
    assert ("OUTSIDE" in capsys.readouterr().out) == (code == 1)


def test_command_line_output_folder(common, script, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for target, code in ((tmp_path / "deep" / "folder", 0), (file, 2)):
        monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(target)])
        with pytest.raises(SystemExit) as end:
            common.main(everything, script(figure("a")))
        assert int(end.value.code) == code
    assert (tmp_path / "deep" / "folder" / "picture.pdf").exists()
    assert "is a file, not a folder" in capsys.readouterr().err
