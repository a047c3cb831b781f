"""The studies: every one runs quickly and reproduces its figures; the frame judges rightly."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import math
import sys
from importlib import metadata
from pathlib import Path

import matplotlib
import pytest
import rich.console
import rich.progress
from matplotlib.backends.backend_agg import FigureCanvasAgg

from polarlib import plot

ROOT = Path(__file__).resolve().parents[1]
ANALYSIS = ROOT / "analysis"
# Errors of wrong methods up to this size are rounding errors, which depend on the processor.
ROUNDING = 1e-5
VERDICTS = ("reproduced", "consistent", "not reproduced", "not run")
STUDIES = sorted(path.parent.name for path in ANALYSIS.glob("*/run.py"))


def load(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def told(name):
    return json.loads((ANALYSIS / name / "expected.json").read_text(encoding="utf-8"))


def skip_without(name):
    """Skip a study whose packages, of the extra "studies", are not installed."""
    for distribution in told(name).get("needs", ()):
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} needs {distribution}")


@pytest.fixture(scope="module")
def common():
    path, modules = sys.path[:], set(sys.modules)
    yield load(ANALYSIS / "common.py", "common")
    sys.path[:] = path  # which the scripts extend
    for name in set(sys.modules) - modules:
        if ANALYSIS in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
            del sys.modules[name]


@pytest.fixture
def faults(common, monkeypatch):
    """What benchmarks/figures_check.py finds in plots that are handed in."""
    if not (ROOT / "benchmarks").is_dir():
        return []
    checks = load(ROOT / "benchmarks" / "figures_check.py", "figures_check")
    found, plot = [], common.Output.plot

    def checked(out, name, fig, caption):
        FigureCanvasAgg(fig)
        for ax in fig.axes:
            # A panel of several may be small.
            here = [fault for fault in checks.faults(ax) if "the Axes have" not in fault]
            found.extend(f"{name}: {fault}" for fault in [*here, *checks.alike(ax)])
        plot(out, name, fig, caption)

    monkeypatch.setattr(common.Output, "plot", checked)
    return found


def test_there_are_studies():
    assert len(STUDIES) >= 4


@pytest.mark.thinned(len(STUDIES))
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_reproduces_its_figures(name, common, faults, tmp_path):
    skip_without(name)
    script = ANALYSIS / name / "run.py"
    result = common.run(load(script, f"analysis_{name}").study, script, tmp_path, quick=True)
    figures = result["figures"]
    failed = [(f["name"], f["value"], f["published"]) for f in figures if f["passed"] is False]
    assert not failed
    assert any(f["passed"] for f in figures)
    assert {f["verdict"] for f in figures} <= set(VERDICTS)
    assert result == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["study"] == name
    named = [t["csv"] for t in result["tables"]]
    named += [p[kind] for p in result["plots"] for kind in ("png", "pdf", "svg")]
    assert sorted([*named, "result.json"]) == sorted(p.name for p in tmp_path.iterdir())
    assert result["plots"]
    assert not faults


@pytest.mark.thinned(len(STUDIES))
@pytest.mark.parametrize("name", STUDIES)
def test_wrong_methods_are_noticed(name, common, monkeypatch):
    skip_without(name)
    module = load(ANALYSIS / name / "run.py", f"analysis_{name}")
    wrongs = load(ANALYSIS / name / "wrong.py", f"wrong_{name}").WRONG
    entries = common.expected(ANALYSIS / name / "expected.json")["figures"]
    assert wrongs
    for wrong in wrongs:
        out = common.Output(entries, quick=True)
        with monkeypatch.context() as patch:
            for attribute, replacement in wrong.replace.items():
                patch.setattr(module, attribute, replacement)
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                with plot.style("column"):
                    getattr(module, wrong.part)(out, True)
        judged = {figure["name"]: figure for figure in out.judged()}
        assert wrong.figures
        for figure in wrong.figures:
            ours, expected = judged[figure], judged[figure]["wrong"]
            assert ours["verdict"] == "not reproduced", (wrong.method, figure, ours["value"])
            assert not ours["passed"]
            assert expected["method"] == wrong.method, figure
            assert_near(ours["value"], expected["value"])


def assert_near(value, expected):
    """That a wrong method gives about what expected.json says; None is for no value at all."""
    if isinstance(expected, list):
        for ours, theirs in zip(value, expected, strict=True):
            assert_near(ours, theirs)
    elif expected is None:
        assert value is None
    elif abs(expected) > ROUNDING:
        assert value == pytest.approx(expected, rel=0.2)
    else:
        assert expected / 2 <= value <= 2 * expected or abs(value - expected) <= 1e-12


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
    entry = {"name": name, "where": "Table 1", "why": "digits", "quick": True}
    entry |= {"wrong": {"method": "none", "value": None}}
    return entry | {"published": published, "tolerance": tolerance or {"absolute": 0.1}} | more


def recorded(value):
    return {"value": value, "tolerance": {"absolute": 0.01}, "because": "Another matrix."}


@pytest.fixture
def script(tmp_path):
    """A function that writes an expected.json and returns the run.py that lies beside it."""

    def write(*figures, **more):
        folder = tmp_path / "toy"
        folder.mkdir(exist_ok=True)
        claim = {"claimed": "That it is one.", "figures": ["a"], "condition": "Always."}
        told = {"title": "Toy", "source": "Nobody (2026)", "claims": [claim]}
        told |= {"figures": list(figures)} | more
        (folder / "expected.json").write_text(json.dumps(told), encoding="utf-8")
        return folder / "run.py"

    return write


@pytest.mark.parametrize(
    ("published", "tolerance", "value", "passed"),
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
def test_tolerances(published, tolerance, value, passed, common, script, tmp_path):
    (judged,) = judged_by(common, script(figure("a", published, tolerance)), tmp_path, a=value)
    assert judged["passed"] is passed


def judged_by(common, run_py, folder, **values):
    def study(out, quick):
        for name, value in values.items():
            out.figure(name, value)

    return common.run(study, run_py, folder, quick=True)["figures"]


@pytest.mark.parametrize(
    ("entry", "value", "verdict", "passed"),
    [
        (figure(), 1.0, "reproduced", True),
        (figure(source_kind="code"), 1.0, "reproduced", True),
        (figure(), 2.0, "not reproduced", False),
        (figure(), None, "not reproduced", False),
        (figure(source_kind="own"), 1.0, "consistent", True),
        (figure(source_kind="design note"), 1.0, "consistent", True),
        (figure(tolerance={"at_most": 1}), 1.0, "consistent", True),
        (figure(published=None, tolerance={"at_most": 1}), 1.0, "consistent", True),
        (figure(at_best="consistent"), 1.0, "consistent", True),
        (figure(at_best="consistent"), 2.0, "not reproduced", False),
        (figure(recorded=recorded(3.0)), 3.005, "not reproduced", True),
        (figure(recorded=recorded(3.0)), 2.0, "not reproduced", False),
        (figure(recorded=recorded(3.0)), 1.0, "reproduced", False),
        (figure(quick=False), None, "not run", None),
    ],
)
def test_verdicts(entry, value, verdict, passed, common, script, tmp_path):
    values = {} if value is None else {"a": value}
    (judged,) = judged_by(common, script(entry), tmp_path, **values)
    assert (judged["verdict"], judged["passed"]) == (verdict, passed)


def test_quick_leaves_out_and_missing_is_outside(common, script, tmp_path):
    run_py = script(figure("a"), figure("b", quick=False), figure("c"))
    seen = []

    def study(out, quick):
        seen.append(quick)
        out.figure("a", 1.0)

    def judged(quick):
        result = common.run(study, run_py, tmp_path / "out", quick=quick)
        return [f["passed"] for f in result["figures"]]

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
    assert files == ["numbers.csv", "picture.pdf", "picture.png", "picture.svg", "result.json"]
    for name in files[:-1]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert b"/CreationDate" not in (tmp_path / "one" / "picture.pdf").read_bytes()
    assert (tmp_path / "one" / "numbers.csv").read_text() == "k,value\n1,0.1\n2,0.2\n"
    result, other = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")
    )
    assert result.pop("seconds") >= 0
    assert other.pop("seconds") >= 0
    assert result == other
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
        (figure(published=None), "'a': has nothing published"),
        (figure(source_kind="hearsay"), "'hearsay' is none of"),
        (figure(at_best="excellent"), "at_best is 'consistent' or absent"),
        (figure(wrong="a guess"), "wrong needs a method"),
        (figure(wrong={"method": "a guess"}), "wrong needs a method"),
        (figure(wrong={"method": "a guess", "value": 1.05}), "does not exclude 'a guess', which"),
        (figure(wrong={"method": "a guess", "value": [2.0]}), "must both be lists, or numbers"),
        (figure(recorded={"value": 3}), "recorded needs a value"),
        (figure(recorded=recorded(1.05)), "recorded value 1.05 is inside"),
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
    for wrong, match in (
        ({"extra": 1}, "needs exactly claims, figures, needs, source, title"),
        ({"claims": []}, "has no claims"),
        ({"claims": [{"claimed": "x"}]}, "a claim needs claimed, condition, figures"),
        ({"claims": [{"claimed": "x", "figures": ["z"], "condition": ""}]}, "no figure by 'z'"),
    ):
        with pytest.raises(ValueError, match=match):
            common.expected(script(figure("a"), **wrong).with_name("expected.json"))


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
    told = capsys.readouterr().out
    assert ("FAILED" in told) == (code == 1)
    if code < 2:
        assert f"{code} not reproduced" in told


def test_command_line_json(common, script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "--json"])
    with pytest.raises(SystemExit, match="0"):
        common.main(everything, script(figure("a")))
    told = json.loads(capsys.readouterr().out)
    written = tmp_path / "analysis-output" / "toy" / "result.json"
    assert told == json.loads(written.read_text(encoding="utf-8"))


def test_a_missing_package(common, script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    run_py = script(figure("a"), needs=["numpy", "no-such-package"])
    with pytest.raises(SystemExit) as end:
        common.main(everything, run_py)
    assert end.value.code == 3
    assert "needs no-such-package: pip install 'polarlib[studies]'" in capsys.readouterr().err
    assert not (tmp_path / "analysis-output").exists()


def test_progress_bars(common, script, tmp_path):
    stream = io.StringIO()
    console = rich.console.Console(file=stream, force_terminal=True)

    def study(out, quick):
        for _ in out.steps((1, 2), "counting"):
            for _ in out.steps(range(3), "inner"):
                break

    with rich.progress.Progress(console=console) as progress:
        common.run(study, script(figure("a")), tmp_path, quick=True, progress=progress)
        assert not progress.tasks
    out = common.Output([], quick=True)
    assert list(out.steps((1, 2), "counting")) == [1, 2]


def test_command_line_output_folder(common, script, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for target, code in ((tmp_path / "deep" / "folder", 0), (file, 2), (file / "folder", 2)):
        monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(target)])
        with pytest.raises(SystemExit) as end:
            common.main(everything, script(figure("a")))
        assert int(end.value.code) == code
    assert (tmp_path / "deep" / "folder" / "picture.pdf").exists()
    told = capsys.readouterr().err
    assert "is a file, not a folder" in told
    assert "folder cannot be made" in told
