"""Blocks of the reference: constants, names that are new, published sets, statuses, messages."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import polarlib

REFERENCE = Path(__file__).resolve().parent / "reference"


def code(text: Any) -> str:
    return f"`{text}`"


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(x: float, digits: int = 3) -> str:
    """Return a number as Markdown: as it is, or as a power of ten."""
    return f"{x:.{digits}g}"


# -- reference -------------------------------------------------------------------------------

SUMMARY = (".. autosummary::", "   :toctree: generated", "   :nosignatures:")
# Where names of a module stand that no page lists yet.
HOMES = {
    "derivatives": ("polarlib.derivatives",),
    "design": ("polarlib.design",),
    "files": ("polarlib.files", "polarlib.testing"),
    "measure": ("polarlib.plot",),
    "norms": ("polarlib.norms", "polarlib.updates"),
    "orthogonalize": ("polarlib.published",),
    "polar": ("polarlib", "polarlib.result"),
    "tools": ("polarlib.report", "polarlib.bench", "polarlib.timing"),
    "uses": ("polarlib.manifold",),
}


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


def documented(text: str) -> list[str]:
    """Return the names that a page of the reference lists."""
    found = []
    module = ""
    for line in text.splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.match(r"\.\. py:data:: (\S+)", line):
            found.append(match[1])
        elif match := re.fullmatch(r"   (\w+)", line):
            found.append(f"{module}.{match[1]}")
    return found


def public_names(module: str) -> list[str]:
    """Return the public names of a module, under the top level where they are there too."""
    home = importlib.import_module(module)
    found = []
    for name in home.__all__:
        value = getattr(home, name)
        at_top = name in polarlib.__all__ and getattr(polarlib, name, None) is value
        if not isinstance(value, type(sys)):
            found.append(f"polarlib.{name}" if at_top else f"{module}.{name}")
    return found


def others(*modules: str) -> Callable[[], str]:
    """Return the maker of a section of names that no page lists: those that are new."""

    def make() -> str:
        listed = set()
        for path in REFERENCE.glob("*.md"):
            text = path.read_text(encoding="utf-8")
            listed |= set(documented(re.sub(r"(?s)(<!-- begin others).*?<!-- end", r"\1", text)))
        lines = []
        for module in modules:
            new = [name for name in public_names(module) if name not in listed]
            calls = [name for name in new if callable(_value(name))]
            if calls:
                lines += ["```{eval-rst}", f".. currentmodule:: {module}", "", *SUMMARY, ""]
                lines += [f"   {name.rpartition('.')[2]}" for name in calls]
                lines += ["```", ""]
        return "\n".join(["## Further names", "", *lines]).rstrip() if lines else ""

    return make


def _value(name: str) -> Any:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def published_sets() -> str:
    """Return one row per published set, in the order of `polarlib.schedules`."""
    rows = []
    for name in polarlib.schedules():
        s = polarlib.schedule(name)
        safe = [f for f in ("bfloat16", "float16") if s.is_safe_in(f)]
        divided = "" if s.input_safety == 1 else f", input divided by {number(s.input_safety, 4)}"
        rows.append(
            [
                code(name),
                len(s.steps),
                s.matmuls,
                f"[{number(s.lower)},\N{NO-BREAK SPACE}{number(s.upper, 4)}]",
                s.normalisation + divided,
                number(s.error()),
                number(s.slope),
                number(s.divergence_limit, 5),
                ", ".join(safe) or "neither",
            ]
        )
    head = ["set", "steps", "products", "interval", "normalisation", "error", "slope"]
    return table([*head, "diverges above", "safe in"], rows)


def published_sources() -> str:
    """Return source and scaling convention of each published set."""
    rows = []
    for name in polarlib.schedules():
        source = polarlib.schedule(name).source
        rows.append([code(name), source, polarlib.published.conventions(name)])
    return table(["set", "source", "scaling"], rows)


def statuses() -> str:
    """Return every status and its remedy."""
    return table(
        ["status", "remedy"], [[code(f"Status.{s.name}"), s.value] for s in polarlib.Status]
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
