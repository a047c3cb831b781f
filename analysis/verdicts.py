"""What a study is expected to give: its expected.json, and the verdict on a value.

``expected.json`` has a title, a source, needs (distributions of the extra "studies", if any),
claims and figures. A claim is what a paper says (claimed), the names of the figures that bear on
it, and the condition under which it holds.

A figure has

- name, where (the table or equation), and source_kind, one of `KINDS`;
- published: a number or a list, null where a bound alone is claimed;
- tolerance: absolute, relative or factor, or at_most and at_least; and why it is as wide;
- wrong: the nearest wrong method and the value that it gives, null where it gives none. A
  tolerance that does not exclude it is refused;
- quick: whether --quick computes it.

Where our value is outside of the tolerance, recorded has it, with its own tolerance, and because.
Where a published number is met but does not tell the methods of a paper apart, at_best is
"consistent".

The verdict is one of `VERDICTS`. A figure passes if it is inside its tolerance, or, where a value
of ours is recorded, if it is that one.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polarlib.files.plain import plain
from polarlib.report import VERDICTS

__all__ = [
    *("CONSISTENT", "KINDS", "NOT_REPRODUCED", "NOT_RUN", "REPRODUCED", "VERDICTS"),
    *("expected", "inside", "judged", "verdict"),
]

# Where a published figure was found. "own" is no published one: an earlier measurement of ours, or
# an exact mathematical value.
KINDS = ("paper", "code", "design note", "own")
REPRODUCED, CONSISTENT, NOT_REPRODUCED, NOT_RUN = VERDICTS


def verdict(value: Any, entry: dict[str, Any]) -> tuple[str, bool]:
    """The verdict on a value, and whether it is what must come out."""
    tolerance, published, recorded = entry["tolerance"], entry["published"], entry["recorded"]
    met = inside(value, published, tolerance)
    number = (
        entry["source_kind"] in ("paper", "code")
        and published is not None
        and not _LIMITS & set(tolerance)
        and entry["at_best"] != CONSISTENT
    )
    verdict = (REPRODUCED if number else CONSISTENT) if met else NOT_REPRODUCED
    if recorded is None:
        return verdict, met
    return verdict, inside(value, recorded["value"], recorded["tolerance"])


def judged(entries: Sequence[dict[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of expected.json with their values and verdicts, and whether they passed.

    Values become what JSON can hold: NaN becomes None.
    """
    rows = []
    for entry in entries:
        value = values.get(entry["name"])
        word, passed = verdict(value, entry)  # before NaN becomes None
        rows.append(entry | {"value": plain(value), "verdict": word, "passed": passed})
    return rows


_LIMITS = {"at_most", "at_least"}


def inside(value: Any, published: Any, tolerance: Mapping[str, float]) -> bool:
    """Whether a value, or every entry of a list, is inside a tolerance; None and NaN never are.

    Parameters
    ----------
    value, published : float or sequence of float or None
        Of the same length, if the tolerance is around the published ones.
    tolerance : mapping
        Of one of "absolute", "relative", "factor", or of "at_most", "at_least" or both.
    """
    if value is None:
        return False
    # None in a list: a method that gives no value in one of several places.
    ours = np.asarray(value, dtype=float)
    within = np.isfinite(ours)
    if "at_most" in tolerance:
        within &= ours <= tolerance["at_most"]
    if "at_least" in tolerance:
        within &= ours >= tolerance["at_least"]
    if not _LIMITS & set(tolerance):
        target = np.asarray(published, dtype=float)
        if ours.shape != target.shape:
            return False
        if "absolute" in tolerance:
            within &= np.abs(ours - target) <= tolerance["absolute"]
        elif "relative" in tolerance:
            within &= np.abs(ours - target) <= tolerance["relative"] * np.abs(target)
        else:
            factor = tolerance["factor"]
            within &= (target <= factor * ours) & (ours <= factor * target)
    return bool(within.all() and ours.size)


def expected(path: Path) -> dict[str, Any]:
    """Read and check an expected.json.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict
        Title, source, figures, each figure with every key.

    Raises
    ------
    ValueError
        If it does not say what it must; the message names the file and the figure.
    """
    told = json.loads(Path(path).read_text(encoding="utf-8"))

    def require(right: bool, what: str) -> None:
        if not right:
            raise ValueError(f"{path}: {what}")

    told = {"needs": []} | told
    require(set(told) == _KEYS, f"needs exactly {', '.join(sorted(_KEYS))}")
    figures = [_OPTIONAL | given for given in told["figures"]]
    names = [figure.get("name") for figure in figures]
    for figure in figures:
        name = figure.get("name")
        require(
            set(figure) == _FIGURE_KEYS,
            f"figure {name!r} needs exactly {', '.join(sorted(_FIGURE_KEYS))}",
        )
        require(names.count(name) == 1, f"figure {name!r} comes twice")
        for wrong in _faults(figure):
            require(False, f"figure {name!r}: {wrong}")
    for claim in told["claims"]:
        require(set(claim) == _CLAIM_KEYS, f"a claim needs {', '.join(sorted(_CLAIM_KEYS))}")
        for name in claim["figures"]:
            require(name in names, f"the claim {claim['claimed']!r} names no figure by {name!r}")
    require(bool(told["claims"]), "has no claims")
    return told | {"figures": figures}


_KEYS = {"title", "source", "needs", "claims", "figures"}
_CLAIM_KEYS = {"claimed", "figures", "condition"}
_OPTIONAL: dict[str, Any] = {
    "source_kind": "paper",
    "quick": False,
    "published": None,
    "recorded": None,
    "at_best": None,
}
_FIGURE_KEYS = {*_OPTIONAL, "name", "where", "tolerance", "why", "wrong"}


def _faults(figure: dict[str, Any]) -> Iterator[str]:
    """What an entry of expected.json lacks, in words."""
    kind, published, tolerance = figure["source_kind"], figure["published"], figure["tolerance"]
    if kind not in KINDS:
        yield f"source_kind {kind!r} is none of {KINDS}"
    if figure["at_best"] not in (None, CONSISTENT):
        yield f"at_best is {CONSISTENT!r} or absent, got {figure['at_best']!r}"
    if not _is_tolerance(tolerance):
        yield (
            "tolerance is absolute, relative or factor, or at_most and at_least, with numbers, "
            f"got {tolerance}"
        )
        return
    if published is None and not set(tolerance) <= _LIMITS:
        yield "has nothing published"
        return
    wrong, recorded = figure["wrong"], figure["recorded"]
    if not isinstance(wrong, dict) or set(wrong) != {"method", "value"} or not wrong["method"]:
        yield "wrong needs a method and the value that it gives"
    elif inside(wrong["value"], published, tolerance):
        yield f"the tolerance does not exclude {wrong['method']!r}, which gives {wrong['value']}"
    elif isinstance(wrong["value"], list) != isinstance(published, list) and not (
        wrong["value"] is None or set(tolerance) <= _LIMITS
    ):
        yield f"published and the value of {wrong['method']!r} must both be lists, or numbers"
    if recorded is None:
        return
    if set(recorded) != {"value", "tolerance", "because"} or not _is_tolerance(
        recorded["tolerance"]
    ):
        yield "recorded needs a value, a tolerance and because"
    elif inside(recorded["value"], published, tolerance):
        yield f"the recorded value {recorded['value']} is inside the tolerance"


def _is_tolerance(tolerance: Any) -> bool:
    if not isinstance(tolerance, dict) or not tolerance:
        return False
    numeric = all(
        isinstance(v, numbers.Real) and math.isfinite(float(v)) for v in tolerance.values()
    )
    near = len(tolerance) == 1 and set(tolerance) <= {"absolute", "relative", "factor"}
    return numeric and (near or set(tolerance) <= _LIMITS)
