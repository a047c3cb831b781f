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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reference_blocks as blocks
from reference_blocks import code, table

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
        rows.append([code(command), ", ".join(map(code, keys))])
    return table(["command", "keys"], rows)


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
            rows.append([code(name), purpose, packages])
    return table(["extra", "for", "installs"], rows)


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
    return table(["package", "lowest version"], rows)


def _sources() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads((DOCS / "sources.toml").read_text("utf-8"))


def cited(kind: str) -> Callable[[], str]:
    """Return the maker of the table of methods or sets with their citations."""

    def make() -> str:
        rows = [[code(k), f"{{cite:p}}`{','.join(v)}`"] for k, v in _sources()[kind].items()]
        return table([{"methods": "method", "sets": "set"}[kind], "cite"], rows)

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
    return table(["claim", "condition", "source"], rows)


# -- pages -----------------------------------------------------------------------------------

PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "index.md": {"claims": claims},
    "install.md": {"extras": extras, "versions": versions},
    "citing.md": {"methods": cited("methods"), "sets": cited("sets")},
    "guide/cli.md": {"help": help_texts, "outputs": outputs, "json": json_keys},
    "reference/published.md": {"sets": blocks.published_sets, "sources": blocks.published_sources},
    "reference/errors.md": {
        "statuses": blocks.statuses,
        "mistakes": blocks.mistakes,
        "warned": blocks.warned,
    },
    "reference/norms.md": {"constants norms": blocks.constants("norms")},
    "reference/measure.md": {"constants plot": blocks.constants("plot")},
    "reference/files.md": {
        "constants files": blocks.constants("files"),
        "constants testing": blocks.constants("testing"),
    },
    "reference/tools.md": {
        f"constants {module}": blocks.constants(module)
        for module in ("bench", "timing", "polarlib")
    },
}
for _page, _modules in blocks.HOMES.items():
    PAGES.setdefault(f"reference/{_page}.md", {})["others"] = blocks.others(*_modules)
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
