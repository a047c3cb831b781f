"""Measures of the code's structure: sizes, dependencies, calls of one decomposition.

    python benchmarks/measures.py
    python benchmarks/measures.py --label before --root ../checkout-of-another-commit

measures the package in a checkout and adds the numbers to docs/data/measures.json; every run then
prints the table of this file and puts it into docs/architecture.md, with the files that three calls
enter, as traced. Two things are written into the data by hand: under "reasons", by the key of a
measure, why it is missed, and the numbers of places before. tests/test_house.py uses the functions
below to keep the rules.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "data" / "measures.json", ROOT / "docs" / "architecture.md"
LARGEST_FILE = 500  # lines
N = 1024  # rows and columns of the matrix whose decomposition is counted

WALKS = (
    f"`polar(a)`, a NumPy matrix {N} x {N}",
    "`orthogonalize(g)`, a 1024 x 256 gradient of torch in float32",
    "`design.fingerprint`, `design.greedy`, `plot.polynomial` of a published step",
)
# Those that import-linter forbids outside arrays/.
ARRAY_LIBRARIES = tuple(
    tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][1]["forbidden_modules"]
)
# Where array libraries may be named: in today's folders, and in the files of the former layout.
ARRAYS = (
    *("arrays/", "files/", "files.py", "bench.py", "testing.py"),
    *("_blas.py", "_checks.py", "_cublas.py", "_cusolver.py", "_qr_kernels.py"),
    *("formats.py", "ops.py", "precision.py"),
)


class Measure(NamedTuple):
    """A row of the table: its key in the data, its words, and the plan's number."""

    key: str
    words: str
    plan: float | None
    least: bool = False  # whether the plan's number is a least value


MEASURES = (
    Measure("lines", "lines of polarlib/", 17_000),
    Measure("largest_file", "largest file, in lines", LARGEST_FILE),
    Measure("large_files", f"files above {LARGEST_FILE} lines", 0),
    Measure("longest_function", "longest function, in lines of code", None),
    Measure("public_methods", "public methods of `Ops` and its subclasses", 30),
    Measure("calls", f"calls of one warm `polar`, {N} x {N}", 300),
    Measure("hand_overs", "hand-overs of an array between files in it", 30),
    Measure("dependencies", "required dependencies", 6),
    Measure("exported_classes", "exported classes", 9),
    Measure("places_target", "places to touch for a new target", 2),
    Measure("places_normalisation", "places to touch for a new normalisation", 1),
    Measure("places_library", "places to touch for a new array library", 2),
    Measure("comments", "comments per 100 lines of code", 8, least=True),
    Measure("numpy_checks", "comparisons with NumPy's array type outside arrays/", 0),
    Measure("library_names", "array libraries named outside arrays/", 0),
    Measure("type_errors", "errors of mypy --strict", 0),
    Measure("circles", "import circles", 0),
)


class Place(NamedTuple):
    """A place in the source, and what is there."""

    file: str  # below polarlib/
    line: int
    text: str


# -- sources ---------------------------------------------------------------------------------


def sources(package: Path) -> dict[str, str]:
    """Return the text of each Python file, by its path below the package."""
    return {
        path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(package.rglob("*.py"))
    }


def _outside(file: str) -> bool:
    return not file.startswith(ARRAYS)


@functools.cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    """Return the nodes of a file's syntax tree, never changed."""
    return tuple(ast.walk(ast.parse(text)))


@functools.cache
def _code_lines(text: str) -> frozenset[int]:
    """Numbers of the lines that hold code: no comments, docstrings, or empty lines."""
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank | {tokenize.ENDMARKER}:
            lines.update(range(token.start[0], token.end[0] + 1))
    for docstring in docstrings(text):
        lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return frozenset(lines)


def docstrings(text: str) -> list[ast.Constant]:
    """Return the docstrings of a module, its classes and functions."""
    found = []
    for node in nodes(text):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.append(first.value)
    return found


def comments_per_100(texts: Iterable[str]) -> float:
    """Return the number of lines with a comment per 100 lines of code.

    Headings of sections and directives of tools are no comments.
    """
    other = re.compile(r"#\s*(-- |noqa|type:|fmt:|pragma|ruff:|doctest:|!)")
    comments = code = 0
    for text in texts:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            comments += token.type == tokenize.COMMENT and not other.match(token.string)
        code += len(_code_lines(text))
    return round(100 * comments / code, 1)


def longest_function(files: dict[str, str]) -> tuple[int, str]:
    """Return the lines of code of the longest function, and its name."""
    best = (0, "")
    for file, text in files.items():
        code = _code_lines(text)
        for node in nodes(text):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
                best = max(best, (lines, f"{file}: {node.name}"))
    return best


# -- array libraries -------------------------------------------------------------------------


def numpy_checks(files: dict[str, str]) -> list[Place]:
    """Return the places outside arrays/ that compare a type with NumPy's array type."""
    found = []
    for file, text in files.items():
        if not _outside(file):
            continue
        for node in nodes(text):
            asked: list[ast.expr] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                asked = node.args[1:]
            elif isinstance(node, ast.Compare):
                asked = node.comparators
            if any(re.search(r"\bndarray\b", ast.unparse(each)) for each in asked):
                found.append(Place(file, node.lineno, ast.unparse(node)))
    return found


def library_names(files: dict[str, str]) -> list[Place]:
    """Return the places outside arrays/ that import or name an array library.

    A name is an import, or a string that begins with the library's name and is no docstring:
    'torch', 'jax.numpy', 'dask.'.
    """
    names = re.compile(rf"({'|'.join(ARRAY_LIBRARIES)})(\.\w*)*")
    found = []
    for file, text in files.items():
        if not _outside(file):
            continue
        prose = {id(each) for each in docstrings(text)}
        for node in nodes(text):
            given: list[str] = []
            if isinstance(node, ast.Import):
                given = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                given = [node.module or ""]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                given = [] if id(node) in prose else [node.value]
            for each in given:
                if names.fullmatch(each):
                    found.append(Place(file, getattr(node, "lineno", 0), each))
    return found


# -- imports ---------------------------------------------------------------------------------


def module_name(file: str) -> str:
    """Return the name of the module in a file below the package."""
    return ".".join(["polarlib", *Path(file).with_suffix("").parts]).removesuffix(".__init__")


def imports(files: dict[str, str]) -> dict[str, set[str]]:
    """Return what each module imports of the package, in functions and by a string as well.

    That an import of a.b runs a/__init__.py first does not count: it is not named.
    """
    modules = {module_name(file): file for file in files}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        for node in nodes(files[file]):
            if isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                home = Path("polarlib", file).parts[: -node.level] if node.level else ()
                module = ".".join([*home, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    graph[name].add(inner if inner in modules else module)
            elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                graph[name].update(
                    each.value
                    for each in node.args
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                )
        graph[name] &= set(modules)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules of which each imports all others, directly or through others."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead.extend(graph[name])
    return seen


# -- what runs -------------------------------------------------------------------------------


def public_methods() -> set[str]:
    """Return the public callables of class Ops and of its subclasses for libraries."""
    module = importlib.import_module("polarlib")
    ops = importlib.import_module(
        "polarlib.arrays.ops" if _exists("polarlib.arrays") else "polarlib.ops"
    ).Ops

    def kinds(kind: type) -> Iterator[type]:
        yield kind
        for each in kind.__subclasses__():
            yield from kinds(each)

    known = [k for k in kinds(ops) if k.__module__.startswith(module.__name__)]
    return {
        name
        for kind in known
        for name, value in inspect.getmembers_static(kind)
        if not name.startswith("_")
        and (callable(value) or isinstance(value, classmethod | staticmethod))
    }


def _exists(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def exported_classes() -> list[str]:
    """Return the classes in the public list of polarlib and of the modules in it."""
    module = importlib.import_module("polarlib")
    public = [module, *(getattr(module, name) for name in module.__all__)]
    return sorted(
        {
            value.__qualname__
            for each in public
            if inspect.ismodule(each)
            for value in (getattr(each, name) for name in each.__all__)
            if inspect.isclass(value)
        }
    )


def traced(call: Callable[[], Any]) -> list[tuple[str | None, str, str, bool]]:
    """Return the calls of functions of the package: caller's file, file, name, an array handed.

    The caller is the nearest function of the package on the stack. Comprehensions do not count:
    whether they are calls depends on Python's version.
    """
    numpy = importlib.import_module("numpy")
    package = Path(importlib.import_module("polarlib").__file__ or "").parent
    found: list[tuple[str | None, str, str, bool]] = []

    def inside(frame: FrameType | None) -> str | None:
        path = Path(frame.f_code.co_filename) if frame is not None else None
        within = path is not None and package in path.parents
        return path.relative_to(package).as_posix() if path is not None and within else None

    def profile(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        file = inside(frame) if event == "call" else None
        if file is None or re.fullmatch(r"<\w+(comp|expr)>", code.co_name):
            return
        caller, back = None, frame.f_back
        while back is not None and caller is None:
            caller, back = inside(back), back.f_back
        count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
        given = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
        flat = [y for x in given for y in (x if isinstance(x, tuple | list) else (x,))]
        handed = any(isinstance(x, numpy.ndarray) and x.ndim >= 2 for x in flat)
        found.append((caller, file, code.co_qualname, handed))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def walks() -> dict[str, list[str]]:
    """Return the files that three calls enter, each once, in the order of their first call."""
    numpy = importlib.import_module("numpy")
    polarlib = importlib.import_module("polarlib")
    if not _exists("polarlib.arrays"):
        return {}
    a = numpy.random.default_rng(0).standard_normal((N, N))
    calls = {WALKS[0]: lambda: polarlib.polar(a)}
    if _exists("torch"):
        torch = importlib.import_module("torch")
        g = torch.randn(N, N // 4, generator=torch.Generator().manual_seed(0))
        calls[WALKS[1]] = lambda: polarlib.orthogonalize(g)
    # Degree 5, from l = 1e-3: N. Amsel et al., The Polar Express, arXiv:2505.16932, Algorithm 1.
    step = polarlib.schedule("polar_express").steps[0]

    def designed() -> None:
        interval = polarlib.design.fingerprint(step)
        schedule = polarlib.design.greedy(interval.lower, (5,) * 5)
        polarlib.plot.polynomial(schedule)

    calls[WALKS[2]] = designed
    found = {}
    for name, call in calls.items():
        call()  # caches are filled, and modules that are imported late
        entered: dict[str, None] = {}
        for _, file, _, _ in traced(call):
            entered.setdefault(file)
        found[name] = list(entered)
    return found


def running() -> dict[str, Any]:
    """Return the measures that need the package imported; run in a process of its own."""
    numpy = importlib.import_module("numpy")
    polarlib = importlib.import_module("polarlib")
    a = numpy.random.default_rng(0).standard_normal((N, N))
    for _ in range(2):
        polarlib.polar(a)
    calls = traced(lambda: polarlib.polar(a))
    return {
        "walks": walks(),
        "calls": len(calls),
        "hand_overs": sum(
            handed and caller not in (None, file) for caller, file, _, handed in calls
        ),
        "public_methods": len(public_methods()),
        "exported_classes": len(exported_classes()),
    }


# -- the table -------------------------------------------------------------------------------


def still(root: Path) -> dict[str, Any]:
    """Return the measures that are read off the files of a checkout."""
    files = sources(root / "polarlib")
    lengths = {file: len(text.splitlines()) for file, text in files.items()}
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = {
        f"places_{name}": int(found[1])
        for name, found in (
            (name, re.search(rf"^## Add an? [\w ]*{name}\b.*\n+Places: (\d+)", contributing, re.M))
            for name in ("target", "normalisation", "library")
        )
        if found
    }
    return places | {
        "lines": sum(lengths.values()),
        "largest_file": max(lengths.values()),
        "large_files": sum(lines > LARGEST_FILE for lines in lengths.values()),
        "longest_function": longest_function(files)[0],
        "dependencies": len(project["dependencies"]),
        "comments": comments_per_100(files.values()),
        "numpy_checks": len(numpy_checks(files)),
        "library_names": len(library_names(files)),
        "circles": len(circles(imports(files))),
    }


def measured(root: Path) -> dict[str, Any]:
    """Return all measures of a checkout."""
    script = [sys.executable, str(Path(__file__).resolve()), "--running"]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(
        script, cwd=root, env=environment, check=True, capture_output=True, text=True
    )
    types = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict"], cwd=root, capture_output=True, text=True
    ).stdout
    errors = re.search(r"Found (\d+) errors?|Success", types)
    if errors is None:
        raise RuntimeError(f"mypy gave no summary: {types[-500:]}")
    return still(root) | json.loads(ran.stdout) | {"type_errors": int(errors[1] or 0)}


def missed(measure: Measure, value: float | None) -> bool:
    """Whether a value is worse than planned; False where there is no plan or no value."""
    if measure.plan is None or value is None:
        return False
    return value < measure.plan if measure.least else value > measure.plan


def table(data: dict[str, Any]) -> str:
    """Return the measures as a table of Markdown."""
    before, after = data["before"]["measures"], data["after"]["measures"]
    lines = [
        f"| measure | before ({data['before']['commit']}) | now | plan | reason, where missed |",
        "|---|---:|---:|---:|---|",
    ]
    for m in MEASURES:
        # A recipe of CONTRIBUTING.md may have no count.
        was, now = (f"{each[m.key]:,}" if m.key in each else "–" for each in (before, after))
        reason = data["reasons"].get(m.key, "") if missed(m, after.get(m.key)) else ""
        bound = "more" if m.least else "fewer"
        plan = {None: "–", 0: "0"}.get(m.plan, f"{m.plan or 0:,} or {bound}")
        lines.append(f"| {m.words} | {was} | {now} | {plan} | {reason} |")
    return "\n".join(lines)


def walk_table(found: dict[str, list[str]]) -> str:
    """Return the files of the three calls as a table of Markdown."""
    rows = itertools.zip_longest(*(found[name] for name in WALKS), fillvalue="")
    cells = (" | ".join(row) for row in rows)
    head = ["| | " + " | ".join(WALKS) + " |", "|---:|---|---|---|"]
    return "\n".join([*head, *(f"| {i} | {each} |" for i, each in enumerate(cells, 1))])


def main() -> None:
    """Measure a checkout, keep the numbers, and make the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--label", choices=("before", "after"), default="after")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to measure")
    parser.add_argument("--running", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.running:
        sys.stdout.write(json.dumps(running()) + "\n")
        return
    # Not imported by --running: the other checkout may lack what they need.
    from common import replace_part

    data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    root = args.root.resolve()
    found = measured(root)
    walked = found.pop("walks")
    if args.label == "after":
        # Without torch, its column stays as it was.
        data["walks"] = data.get("walks", {}) | walked
    kept = data.setdefault(args.label, {})
    kept["measures"] = kept.get("measures", {}) | found
    if args.label == "before":
        revision = ["git", "rev-parse", "--short", "HEAD"]
        said = subprocess.run(revision, cwd=root, check=True, capture_output=True, text=True)
        kept["commit"] = said.stdout.strip()
    data.setdefault("reasons", {})
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if {"before", "after"} <= set(data):
        sys.stdout.write(table(data) + "\n")
        replace_part(PAGE, "measures", table(data))
        replace_part(PAGE, "walks", walk_table(data["walks"]))


if __name__ == "__main__":
    main()
