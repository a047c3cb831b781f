"""Fill the generated blocks of the site's own pages: ``python docs/make_reference.py [--check]``.

A block stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. Its text comes from the
package (`polarlib.schedules`, the command line, messages of calls that fail), from pyproject.toml,
from docs/sources.toml and from the measurements in docs/data. ``--check`` writes nothing and exits
with 1 where a page is stale. The build of the site and tests/test_site.py run the same check.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import re
import statistics
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import polarlib
from polarlib.files.whole import write_whole

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
EXTRAS = {
    "cli": "the command `polarlib`",
    "plot": "`polarlib.plot`, and the pictures of the command line",
    "report": "`polarlib.report`, and `polarlib report`",
    "files": "bfloat16 and 8-bit NumPy arrays, and further file formats",
    "torch": "PyTorch tensors",
    "jax": "JAX arrays",
    "dask": "`polar_tall`, for Dask arrays larger than memory",
    "cupy": "CuPy arrays, with the CUDA libraries that CuPy needs",
    "triton": "symmetric products of CUDA tensors at half the cost, on Linux",
    "fast": "design with many digits, several times as fast",
    "docs": "this site",
    "studies": "the studies in `analysis/`",
    "test": "the tests, with `cli`, `plot` and `files`",
    "all": "every extra that needs no GPU",
}


def _code(text: Any) -> str:
    return f"`{text}`"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _number(x: float, digits: int = 3) -> str:
    """Return a number as Markdown: as it is, or as a power of ten."""
    return f"{x:.{digits}g}"


# -- reference -------------------------------------------------------------------------------


def constants(module: str) -> Callable[[], str]:
    """Return the maker of the entries of a module's public constants."""

    def make() -> str:
        home = importlib.import_module(f"polarlib.{module}" if module != "polarlib" else module)
        entries = []
        for name in home.__all__:
            value = getattr(home, name)
            if callable(value) or isinstance(value, type(sys)):
                continue
            if name == "__version__":
                shown = "the installed version"
            elif len(repr(value)) <= 90:
                shown = f"``{value!r}``"
            else:
                keys = ", ".join(f"``{key!r}``" for key in value)
                shown = f"{'a mapping with the keys' if hasattr(value, 'keys') else ''} {keys}"
            entries += [f".. py:data:: {home.__name__}.{name}", "", f"   {shown.strip()}", ""]
        return "\n".join(["```{eval-rst}", *entries, "```"])

    return make


def published_sets() -> str:
    """Return one row per published set, in the order of `polarlib.schedules`."""
    rows = []
    for name in polarlib.schedules():
        s = polarlib.schedule(name)
        safe = [f for f in ("bfloat16", "float16") if s.is_safe_in(f)]
        divided = "" if s.input_safety == 1 else f", input divided by {_number(s.input_safety, 4)}"
        rows.append(
            [
                _code(name),
                len(s.steps),
                s.matmuls,
                f"[{_number(s.lower)},\N{NO-BREAK SPACE}{_number(s.upper, 4)}]",
                s.normalisation + divided,
                _number(s.error()),
                _number(s.slope),
                _number(s.divergence_limit, 5),
                ", ".join(safe) or "neither",
            ]
        )
    head = ["set", "steps", "products", "interval", "normalisation", "error", "slope"]
    return _table([*head, "diverges above", "safe in"], rows)


def published_sources() -> str:
    """Return source and scaling convention of each published set."""
    rows = []
    for name in polarlib.schedules():
        source = polarlib.schedule(name).source
        rows.append([_code(name), source, polarlib.published.conventions(name)])
    return _table(["set", "source", "scaling"], rows)


def statuses() -> str:
    """Return every status and its remedy."""
    return _table(
        ["status", "remedy"], [[_code(f"Status.{s.name}"), s.value] for s in polarlib.Status]
    )


# Calls with a mistake, as a newcomer makes it. `a` is 5 x 3 and `s` is a.T @ a.
MISTAKES = (
    "polar(a[0])",
    'polar([["x"]])',
    "polar(a * np.nan)",
    'polar(a, side="up")',
    "polar(a, rtol=-1)",
    'orthogonalize(a, schedule="polarexpress")',
    "orthogonalize(a, steps=0)",
    'orthogonalize(a, precision="bf16")',
    "orthogonalize(a, schedule=[(1.5, -0.5)])",
    "orthogonalize(a, out=a[:2])",
    "nearest_rotation(a)",
    "align(a, a[:3])",
    "sqrtm_psd(-s)",
    "sqrtm_psd(s + np.triu(s))",
    "signm(np.zeros((2, 2)))",
    "top_singular(a, 4)",
    "polar_vjp(np.zeros((3, 3)), np.eye(3))",
    "Schedule(steps=[(1.5, -0.5)], lower=2.0)",
    "Schedule(steps=[(-1.5, 0.5)], lower=0.1)",
    'schedule("you", steps=9)',
    "design.greedy(0, [5, 5])",
    "design.greedy(1e-3, [4, 5])",
    "design.budget(1e-3, 1)",
    'files.read("missing.npy")',
)
# Calls that warn.
WARNED = (
    'orthogonalize(a, schedule="cans", precision="bfloat16")',
    "polar(a, rtol=1e-30)",
)


def _names() -> dict[str, Any]:
    a = np.random.default_rng(0).standard_normal((5, 3))
    public = {name: getattr(polarlib, name) for name in polarlib.__all__ if name != "plot"}
    return {**public, "np": np, "a": a, "s": a.T @ a}


def _shortened(message: str) -> str:
    """Return a message whose list of known names is cut after three of them."""
    return re.sub(r"(Known: (?:'\w+', ){3})('\w+',? ?(?:and)? ?)+", r"\1... ", message)


def mistakes() -> str:
    """Return calls that fail, with the class and the message of the exception."""
    lines = []
    for call in MISTAKES:
        try:
            eval(call, _names())
        except Exception as error:
            kind, message = type(error).__name__, _shortened(str(error))
        else:
            raise AssertionError(f"{call} must fail")
        lines += [f"`{call}`", f": `{kind}`: {_escaped(message)}", ""]
    return "\n".join(lines).rstrip()


def warned() -> str:
    """Return calls that warn, with the class and the message of the warning."""
    lines = []
    for call in WARNED:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            eval(call, _names())
        (one,) = found
        message = re.sub(r"\d\.\d+e-1\d", "2e-16", str(one.message))
        lines += [f"`{call}`", f": `{one.category.__name__}`: {_escaped(message)}", ""]
    return "\n".join(lines).rstrip()


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|$])", r"\\\1", " ".join(text.split()))


# -- command line ----------------------------------------------------------------------------

COMMANDS = ("polar", "converge", "compare", "design", "schedules", "bench", "report", "info")
SHOWN = (
    "polar transformer_mlp_in_late",
    "converge transformer_mlp_in_late --schedule jordan",
)
# Calls whose JSON has the keys of the page; the others take longer, or list times.
JSON = {
    "polar": "polar transformer_mlp_in_late",
    "converge": "converge transformer_mlp_in_late --schedule jordan",
    "design": "design --lower 1e-3 --matmuls 6",
    "schedules": "schedules",
    "schedules NAME": "schedules jordan",
    "info": "info",
    "compare": "compare --no-plots --matmuls 6",
}


def run(arguments: str) -> str:
    """Return the output of a command."""
    from typer.testing import CliRunner

    from polarlib import cli

    shell = {"COLUMNS": "90", "TERM": "dumb", "NO_COLOR": "1"}
    result = CliRunner().invoke(cli.app, arguments.split(), env=shell)
    if result.exit_code:
        raise RuntimeError(f"polarlib {arguments} failed: {result.output}")
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def help_texts() -> str:
    """Return the help of every command."""
    parts = []
    for command in COMMANDS:
        parts += [f"### polarlib {command}", "", _fenced(run(f"{command} --help")), ""]
    return "\n".join(parts).rstrip()


def outputs() -> str:
    """Return the output of two commands on a bundled matrix."""
    return _fenced("\n\n".join(f"$ polarlib {each}\n{run(each)}" for each in SHOWN))


def _paths(value: Any, at: str = "") -> list[str]:
    """Return the keys of a JSON document, those of inner objects behind a dot."""
    if isinstance(value, list):
        inner = [key for each in value[:1] for key in _paths(each, at + "[]")]
        return inner if any(isinstance(each, dict) for each in value[:1]) else []
    if not isinstance(value, dict):
        return []
    found = []
    for key, each in value.items():
        name = f"{at}.{key}" if at else key
        if at.count(".") or key in ("packages", "array_libraries", "formats"):
            found.append(name)
        else:
            found += [name, *_paths(each, name)]
    return found


def json_keys() -> str:
    """Return the keys of each command's JSON document."""
    rows = []
    for command, call in JSON.items():
        keys = _paths(json.loads(run(call + " --json")))
        rows.append([_code(command), ", ".join(map(_code, keys))])
    return _table(["command", "keys"], rows)


# -- installation and citation ---------------------------------------------------------------


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


def extras() -> str:
    """Return the extras that a user may name, with their packages."""
    listed = _project()["optional-dependencies"]
    rows = []
    for name, purpose in EXTRAS.items():
        if name in listed:
            packages = ", ".join(re.split(r"[>=<;\[ ]", each)[0] for each in listed[name])
            inner = re.findall(r"polarlib\[([\w,-]+)\]", " ".join(listed[name]))
            packages = packages.replace("polarlib", f"extras {inner[0]}" if inner else "polarlib")
            rows.append([_code(name), purpose, packages])
    return _table(["extra", "for", "installs"], rows)


def versions() -> str:
    """Return the lowest versions of Python, of the dependencies and of array libraries."""
    project = _project()
    rows = [["Python", project["requires-python"].removeprefix(">=")]]
    wanted = [*project["dependencies"]]
    for name in ("torch", "jax", "dask", "cupy"):
        wanted += project["optional-dependencies"][name][:1]
    for each in wanted:
        name, _, version = each.partition(">=")
        rows.append([name.partition("[")[0], version.partition(",")[0]])
    return _table(["package", "lowest version"], rows)


def _sources() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads((DOCS / "sources.toml").read_text("utf-8"))


def cited(kind: str) -> Callable[[], str]:
    """Return the maker of the table of methods or sets with their citations."""

    def make() -> str:
        rows = [[_code(k), f"{{cite:p}}`{','.join(v)}`"] for k, v in _sources()[kind].items()]
        return _table([{"methods": "method", "sets": "set"}[kind], "cite"], rows)

    return make


# -- first page ------------------------------------------------------------------------------


def _data(name: str) -> Any:
    return json.loads((DOCS / "data" / name).read_text("utf-8"))


def _speed(dtype: str) -> tuple[str, str]:
    """Return the claim on the time of `polar` beside SciPy, and its condition."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    page = importlib.import_module("polar_page")
    sys.path.pop(0)
    found = [
        (it.ratio, f"{page.by(shape)}, {page.about(kind)}")
        for one in page.runs(_data("polar_benchmarks.json"))
        for d, shape, kind, rows in page.cases(one)
        if d == dtype and (it := page.worst(rows))
    ]
    least, where = min(found)
    ratios = [ratio for ratio, _ in found]
    runs = len(list(page.runs(_data("polar_benchmarks.json"))))
    claim = (
        f"`polar` has {statistics.median(ratios):.2f} times the speed of `scipy.linalg.polar` in "
        f"the median, and {math.floor(least * 100) / 100:.2f} times at worst"
    )
    matrices = len({where for _, where in found})
    return claim, f"{dtype}, {matrices} matrices, {runs} runs on two processors; worst: {where}"


def claims() -> str:
    """Return the claims of the first page, each with its condition and source."""
    rows = []
    for dtype in ("float64", "float32"):
        rows.append([*_speed(dtype), "[speed](evidence/polar_benchmarks.md)"])
    pairs = [
        (row["default"], row["published"])
        for row in _data("distance.json")
        if (row["format"], row["set"]) == ("bfloat16", "polar_express")
    ]
    errors = [
        statistics.median(x["backward_error"] for x in side) for side in zip(*pairs, strict=True)
    ]
    smaller = sum(d["backward_error"] < p["backward_error"] for d, p in pairs)
    closer = sum(d["distance"] < p["distance"] for d, p in pairs)
    where = f"bfloat16, 15 products, the {len(pairs)} bundled matrices"
    link = "[data](data/distance.json)"
    rows += [
        [
            f"The default schedule has a smaller backward error than Polar Express on {smaller} "
            f"(median {errors[0]:.3f} against {errors[1]:.3f})",
            where,
            link,
        ],
        [f"The default schedule is closer to U than Polar Express on {closer}", where, link],
    ]
    peers = _data("peers.json")
    passed = sum(run["passed"] for run in peers.values())
    rows.append(
        [
            f"{passed:,} tests of other libraries pass with polarlib in place of their functions",
            f"{len(peers)} test suites; tests that were left out have a reason",
            "[other libraries' tests](evidence/peers.md)",
        ]
    )
    papers = _data("papers.json")
    rows.append(
        [
            f"{len(papers)} papers and codes are recomputed, with what was not reproduced",
            "the studies in `analysis/`",
            "[papers](papers.md)",
        ]
    )
    return _table(["claim", "condition", "source"], rows)


# -- pages -----------------------------------------------------------------------------------

PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "index.md": {"claims": claims},
    "install.md": {"extras": extras, "versions": versions},
    "citing.md": {"methods": cited("methods"), "sets": cited("sets")},
    "guide/cli.md": {"help": help_texts, "outputs": outputs, "json": json_keys},
    "reference/published.md": {"sets": published_sets, "sources": published_sources},
    "reference/errors.md": {"statuses": statuses, "mistakes": mistakes, "warned": warned},
    "reference/norms.md": {"constants norms": constants("norms")},
    "reference/measure.md": {"constants plot": constants("plot")},
    "reference/files.md": {
        "constants files": constants("files"),
        "constants testing": constants("testing"),
    },
    "reference/tools.md": {
        f"constants {module}": constants(module) for module in ("bench", "timing", "polarlib")
    },
}
# Digits that depend on the machine: such a block is compared without its digits.
ROUNDED = {"outputs"}


def filled(page: str, text: str) -> str:
    """Return the text of a page with regenerated blocks."""
    for name, make in PAGES[page].items():
        marks = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pieces = re.split("|".join(map(re.escape, marks)), text)
        if len(pieces) != 3:
            raise ValueError(f"docs/{page} must have one pair of {marks[0]} and {marks[1]}")
        new = f"\n{make()}\n"
        if name in ROUNDED and _bare(new) == _bare(pieces[1]):
            new = pieces[1]
        text = f"{pieces[0]}{marks[0]}{new}{marks[1]}{pieces[2]}"
    return text


def _bare(text: str) -> list[str]:
    """Return the words of a block without digits."""
    return re.sub(r"[-+\d.e]+", "", text).split()


def stale(page: str) -> bool:
    """Whether a page differs from what it would be made from now."""
    text = (DOCS / page).read_text(encoding="utf-8")
    with contextlib.chdir(tempfile.gettempdir()):
        return filled(page, text) != text


def main() -> None:
    """Write, or check, the blocks of every page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if stale")
    check = parser.parse_args().check
    old = [page for page in PAGES if stale(page)]
    for page in old:
        sys.stdout.write(f"docs/{page} {'is stale' if check else 'is new'}\n")
        if not check:
            text = filled(page, (DOCS / page).read_text(encoding="utf-8")).encode()
            write_whole(DOCS / page, lambda file, text=text: file.write(text))
    sys.exit(bool(check and old))


if __name__ == "__main__":
    main()
