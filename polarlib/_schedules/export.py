"""Schedules as text: JSON that is read back exactly, and code in other languages.

The functions take the fields of a schedule as a plain mapping and write every field, so that a
field added later is not lost.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import IO, Any, Literal, get_args

from polarlib._schedules.steps import Rational, Step, mapped
from polarlib._schedules.validity import NORMALISATIONS
from polarlib._version import __version__
from polarlib.arrays.checks import choice, nearest, shown
from polarlib.arrays.formats import FORMATS, printable, round_number
from polarlib.files.plain import plain
from polarlib.files.whole import load_json, read_whole, write_whole

Steps = Sequence[Step]
Fields = Mapping[str, Any]
Kind = Literal["python", "c", "triton", "cuda", "latex"]

SCHEMA = "polarlib.schedule"
VERSION = 1
LIMIT = 2**24  # bytes of a file that is read; a step takes about 200
# The fields of the first release of version 1: a file must have them. Fields that were added later
# have their defaults in older files.
FIRST_FIELDS = (
    "steps",
    "lower",
    "upper",
    "normalisation",
    "input_safety",
    "name",
    "source",
    "repeat",
)

CONVENTION = "step (a, b, c, ...) is p(x) = a x + b x^{} + c x^{} + ..., first step first"
RATIONAL = (
    "step (M, (a, b, ...), (c, d, ...)) is M (x + a x / (x^2 + c) + b x / (x^2 + d) + ...), "
    "first step first"
)
REPEATS = {
    None: "the list ends",
    "last": "its last step, again and again",
    "forever": "the list from its beginning",
}


def _is_rational(fields: Fields) -> bool:
    return isinstance(fields["steps"][0], Rational)


def _convention(fields: Fields) -> str:
    if _is_rational(fields):
        return RATIONAL
    return CONVENTION.format(*(1 + i * fields["stride"] for i in (1, 2)))


def _scaling(fields: Fields) -> str:
    """Describe the division of the input; "none" divides by nothing, not even the safety."""
    kind, safety = fields["normalisation"], fields["input_safety"]
    further = "" if kind == "none" or safety == 1 else f", and by {safety!r}"
    return NORMALISATIONS[kind] + further


# -- JSON ------------------------------------------------------------------------------------


def document(fields: Fields, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule as plain data, ready for JSON.

    Parameters
    ----------
    fields : mapping
        Every field of the schedule.
    figures : mapping
        Derived values, which are informative and not read back. Infinity becomes None.

    Returns
    -------
    dict
        Schema name and version, polarlib's version, the convention in words, the fields, the
        derived values. A step is written as decimal numbers and as hexadecimal strings; a rational
        step is ``[scale, residues, poles]`` in both.
    """
    steps = [
        {"decimal": mapped(step, float), "hex": mapped(step, float.hex)} for step in fields["steps"]
    ]
    others = {key: value for key, value in fields.items() if key != "steps"}
    header = {
        "schema": SCHEMA,
        "version": VERSION,
        "polarlib": __version__,
        "convention": f"{_convention(fields)}; before it {_scaling(fields)}; "
        f"after the last listed step: {REPEATS[fields['repeat']]}",
    }
    return {**header, **others, "steps": steps, "figures": plain(dict(figures))}


def write_json(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write a document with one line per key and one per step; on failure nothing is changed."""
    lines = []
    for key, value in document.items():
        text = json.dumps(value, allow_nan=False)
        if key == "steps":
            rows = ",\n".join(f"    {json.dumps(step, allow_nan=False)}" for step in value)
            text = f"[\n{rows}\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    content = "{\n" + ",\n".join(lines) + "\n}\n"

    def write(file: IO[bytes]) -> None:
        file.write(content.encode("ascii"))

    write_whole(path, write)


# Description and types of the JSON value of a field, by the type of its default.
_EXPECTED: dict[type, tuple[str, tuple[type, ...]]] = {
    str: ("a string", (str,)),
    bool: ("true or false", (bool,)),
    int: ("an integer", (int,)),
    float: ("a finite number", (int, float)),
}


def read_json(path: str | os.PathLike[str], defaults: Fields) -> dict[str, Any]:
    """Read a document of :func:`write_json`.

    Parameters
    ----------
    path : path-like
        The file.
    defaults : mapping
        All fields with their defaults, ``dataclasses.MISSING`` for a field without one.

    Returns
    -------
    dict
        The fields. Lists become tuples.

    Raises
    ------
    ValueError
        If the file is not such a document; the message names the file and the key.
    OSError
        If it cannot be read.
    """
    path = os.fspath(path)
    parsed = load_json(read_whole(path, LIMIT), path)
    if not isinstance(parsed, dict):
        raise ValueError(
            f"{path}: expected an object with the keys of {SCHEMA!r}, got {reprlib.repr(parsed)}"
        )

    def wrong(key: str, expected: str) -> ValueError:
        got = f"got {reprlib.repr(parsed[key])}" if key in parsed else "it is missing"
        return ValueError(f"{path}: key {key!r}: expected {expected}, {got}")

    if parsed.get("schema") != SCHEMA:
        raise wrong("schema", repr(SCHEMA))
    version = parsed.get("version")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        raise wrong("version", f"{VERSION}{' (a newer polarlib reads this file)' * newer}")
    known = ("schema", "version", "polarlib", "convention", "figures", *defaults)
    for key in parsed:
        # It may be a field of a later release that changes the schedule.
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}; {nearest(key, known)}")

    fields: dict[str, Any] = {}
    for key, default in defaults.items():
        expected, types = _EXPECTED.get(type(default), ("a value", ()))
        if key not in parsed:
            if key in FIRST_FIELDS or default is MISSING:
                raise wrong(key, "a list of steps" if key == "steps" else expected)
            continue
        value = parsed[key]
        if key == "steps":
            if not isinstance(value, list) or not value:
                raise wrong(key, "a non-empty list of steps")
            where = f"{path}: key 'steps', step"
            value = [_read_step(step, f"{where} {k}") for k, step in enumerate(value, 1)]
        elif types and type(value) not in types:
            raise wrong(key, expected)
        elif not _finite(value):
            raise wrong(key, "finite numbers")
        fields[key] = _tuples(value)
    return fields


def _read_step(step: Any, where: str) -> list[Any]:
    """Read one step: its hexadecimal numbers, to which the decimal ones must be equal."""
    parts: list[Any] = [
        step.get(key) if isinstance(step, dict) else None for key in ("decimal", "hex")
    ]
    decimal, hexadecimal = parts
    if all(
        isinstance(part, list) and [isinstance(v, list) for v in part] == [False, True, True]
        for part in parts
    ):
        scale = _read_step({"decimal": decimal[:1], "hex": hexadecimal[:1]}, where)
        return scale + [
            _read_step({"decimal": d, "hex": h}, where) if d or h else []
            for d, h in zip(decimal[1:], hexadecimal[1:], strict=True)
        ]
    if (
        not (isinstance(decimal, list) and isinstance(hexadecimal, list))
        or not len(decimal) == len(hexadecimal) > 0
        or not all(type(d) in (int, float) and _finite(d) for d in decimal)
    ):
        raise ValueError(
            f"{where}: expected 'decimal', a list of finite numbers, and 'hex', as many "
            f"hexadecimal strings, got {reprlib.repr(step)}"
        )
    coefficients = []
    for d, h in zip(decimal, hexadecimal, strict=True):
        try:
            c = float.fromhex(h)
        except (TypeError, ValueError, OverflowError):
            c = math.nan
        if not math.isfinite(c):
            raise ValueError(f"{where}: expected a finite hexadecimal float, got {reprlib.repr(h)}")
        if c.hex() != float(d).hex():  # distinguishes -0.0 from 0.0
            raise ValueError(
                f"{where}: decimal {d!r} and hexadecimal {h!r} (which is {c!r}) are different "
                "numbers; make the two agree"
            )
        coefficients.append(c)
    return coefficients


def _finite(value: Any) -> bool:
    """Whether every number in parsed JSON is a finite double."""
    if isinstance(value, list | dict):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # an integer above the largest double
        return False


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# -- code ------------------------------------------------------------------------------------


def code(fields: Fields, kind: str) -> str:
    """Write a schedule as source code.

    Parameters
    ----------
    fields : mapping
        Every field of the schedule.
    kind : str
        One of ``KINDS``.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        For an unknown kind, for coefficients that overflow in single precision where the text
        holds them in it ("c", "cuda"), and for rational steps in all kinds but "python".
    """
    write = KINDS[choice("kind of code", kind, KINDS)]
    if _is_rational(fields) and kind != "python":
        raise ValueError(
            f"code of kind {kind!r} is for schedules of polynomials; schedule "
            f"{shown(fields['name'])} is rational: use 'python'"
        )
    return "\n".join(write(fields)) + "\n"


def _printable(text: Any) -> str:
    """Return one line without control characters, those for the direction of text included."""
    return printable(" ".join(str(text).split()))


def _about(fields: Fields) -> list[str]:
    """Return the lines of a comment: the convention, then every field but the steps."""
    kind = "rational functions" if _is_rational(fields) else "polynomials"
    lines = [
        f"Coefficients of a composition of odd {kind}, written by polarlib {__version__}.",
        f"Convention: {_convention(fields)}.",
        f"Before the first step: {_scaling(fields)}.",
        f"After the last one: {REPEATS[fields['repeat']]}.",
    ]
    lines += [
        f"{key}: {_printable(value)}"
        for key, value in fields.items()
        if key != "steps" and value not in (None, "")
    ]
    return [
        row
        for line in lines
        for row in textwrap.wrap(
            line, 96, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]


def _identifier(name: Any) -> str:
    """Turn a name into an identifier of C and Python; the prefix keeps it from being a keyword.

    Examples
    --------
    >>> _identifier("Björck, 2nd"), _identifier("%")
    ('polarlib_bjorck_2nd', 'polarlib_schedule')
    """
    import unicodedata  # here, as its table is large

    ascii_name = unicodedata.normalize("NFKD", str(name)).encode("ascii", "ignore").decode("ascii")
    return "polarlib_" + (re.sub(r"[^a-z0-9]+", "_", ascii_name.lower()).strip("_") or "schedule")


def _padded(steps: Steps) -> list[list[float]]:
    """Return steps of equal length: shorter ones end in zeros."""
    terms = max(map(len, steps))
    return [[*step, *[0.0] * (terms - len(step))] for step in steps]


def _degrees(fields: Fields) -> list[int]:
    return [1 + fields["stride"] * (len(step) - 1) for step in fields["steps"]]


def _python(fields: Fields) -> list[str]:
    rows = [f"    {tuple(step)!r}," for step in fields["steps"]]
    return [*(f"# {line}" for line in _about(fields)), "(", *rows, ")"]


def _triton(fields: Fields) -> list[str]:
    steps = fields["steps"]
    rows = _padded(steps)
    lines = [f"# {line}" for line in _about(fields)]
    lines += [
        "# Ck_p is the coefficient of x^p in step k; COEFFICIENTS has a row a step, for loops over",
        "# tl.static_range(STEPS). Steps of a lower degree end in zeros.",
        "import triton.language as tl",
        "",
        f"STEPS = tl.constexpr({len(steps)})",
        f"DEGREES = tl.constexpr({tuple(_degrees(fields))!r})",
        "COEFFICIENTS = tl.constexpr((",
        *(f"    {tuple(row)!r}," for row in rows),
        "))",
    ]
    for k, row in enumerate(rows, 1):
        lines += [
            "",
            *(f"C{k}_{fields['stride'] * i + 1} = tl.constexpr({c!r})" for i, c in enumerate(row)),
        ]
    return lines


def _single(c: float) -> str:
    """Return the hexadecimal literal of the nearest number in single precision."""
    nearest_single = round_number(c, FORMATS["float32"])
    if not math.isfinite(nearest_single):
        raise ValueError(
            f"coefficient {c!r} exceeds the largest number of float32, in which 'c' and 'cuda' "
            "hold it; use 'python' or 'triton'"
        )
    return f"{nearest_single.hex()}f"


def _header(fields: Fields, qualifiers: str, types: Mapping[str, tuple[str, Any]]) -> list[str]:
    """Write a C or CUDA header, one array per type. Hexadecimal literals are exact everywhere."""
    steps, name = fields["steps"], _identifier(fields["name"])
    macro, rows, terms = name.upper(), len(steps), max(map(len, steps))
    lines = ["/*"]
    for line in _about(fields):
        # The text must not end the comment, open another one, or contain a trigraph.
        for digraph in ("*/", "/*", "??/"):
            line = line.replace(digraph, f"{digraph[:-1]} {digraph[-1]}")
        lines.append(f" * {line}")
    lines += [
        " * A row is a step; rows of a lower degree end in zeros.",
        " */",
        f"#ifndef {macro}_H",
        f"#define {macro}_H",
        "",
        f"#define {macro}_STEPS {rows}",
        f"#define {macro}_TERMS {terms}",
        "",
        f"{qualifiers} int {name}_degree[{rows}] = {{",
        f"    {', '.join(map(str, _degrees(fields)))}",
        "};",
    ]
    for kind, (suffix, literal) in types.items():
        lines += ["", f"{qualifiers} {kind} {name}{suffix}[{rows}][{terms}] = {{"]
        for row in _padded(steps):
            numbers, decimal = ", ".join(map(literal, row)), ", ".join(map(repr, row))
            lines.append(f"    {{{numbers}}}, /* {decimal} */")
        lines.append("};")
    return [*lines, "", "#endif"]


def _c(fields: Fields) -> list[str]:
    return _header(
        fields, "static const", {"double": ("", float.hex), "float": ("_float", _single)}
    )


def _cuda(fields: Fields) -> list[str]:
    # A constexpr array alone cannot be read in device code; this one is folded in unrolled loops.
    return _header(fields, "static __constant__ constexpr", {"float": ("", _single)})


_LATEX = {c: f"\\{c}" for c in "{}$&#_%"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _escaped(text: Any) -> str:
    return "".join(_LATEX.get(c, c) for c in _printable(text))


def _latex_number(c: float) -> str:
    digits, _, exponent = repr(c).partition("e")
    return f"${digits} \\times 10^{{{int(exponent)}}}$" if exponent else f"${digits}$"


def _latex(fields: Fields) -> list[str]:
    """Write a table with the shortest decimals that round to the doubles."""
    steps = fields["steps"]
    terms = max(map(len, steps))
    powers = ["$x$", *(f"$x^{{{fields['stride'] * i + 1}}}$" for i in range(1, terms))]
    name, label = _escaped(fields["name"]), _identifier(fields["name"]).replace("_", "-")
    lower, upper = (_latex_number(fields[key]) for key in ("lower", "upper"))
    source = f" Source: {_escaped(fields['source']).rstrip('.')}." if fields["source"] else ""
    rows = [
        " & ".join([str(k), *map(_latex_number, step), *[""] * (terms - len(step))])
        for k, step in enumerate(steps, 1)
    ]
    return [
        *(f"% {line}" for line in _about(fields)),
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{Coefficients of ``{name}'', for singular values from {lower} to {upper}.",
        rf"    Before the first step {_escaped(_scaling(fields))}.{source}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{{'r' * (terms + 1)}}}",
        r"    \toprule",
        rf"    step & {' & '.join(powers)} \\",
        r"    \midrule",
        *(rf"    {row} \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


KINDS = dict(zip(get_args(Kind), (_python, _c, _triton, _cuda, _latex), strict=True))
