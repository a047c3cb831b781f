"""The page docs/evidence/precision.md, from the data that benchmarks/lowbits.py measures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from common import table

Data = dict[str, Any]
LABELS = ("for_precision", "greedy, recipe", "polar_express", "polar_express_102")
LABELS = (*LABELS, "polar_express_105")


def value(x: float | None) -> str:
    """Write four digits; None is a result that diverged."""
    return "diverges" if x is None else f"{x:.4g}"


def listed(values: Sequence[float], form: str = "") -> str:
    """Write a list of numbers."""
    return ", ".join(f"{v:{form}}" for v in values)


def error_table(data: Data) -> str:
    """Worst scalar errors by number of steps."""
    rows = [
        [r["format"], str(r["steps"]), str(3 * r["steps"]), value(r["no rounding"])]
        + [" / ".join(map(value, r["errors"][k])) if k in r["errors"] else "–" for k in LABELS]
        for r in data["errors"]
    ]
    return table(["format", "steps", "products", "no rounding", *LABELS], rows)


def measured_table(data: Data) -> str:
    """Errors and distances on full matrices."""
    rows = [
        [r["format"], f"[{r['lowest']:g}, 1]", r["schedule"], *map(value, _pair(r))]
        for r in data["measured"]
    ]
    return table(["format", "spectrum", "schedule", "worst error", "distance to U"], rows)


def _pair(row: Data) -> tuple[float | None, float | None]:
    return row["error"], row["distance"]


def largest_table(data: Data) -> str:
    """Largest singular values by n."""
    sizes = list(dict.fromkeys(n for r in data["largest"] for n in r["largest"]))
    rows = [
        [r["format"], str(r["steps"]), r["schedule"]]
        + [value(r["largest"][n]) if n in r["largest"] else "–" for n in sizes]
        + [r["worst at"]]
        for r in data["largest"]
    ]
    return table(["format", "steps", "schedule", *sizes, "worst at"], rows)


def degrees_table(data: Data) -> str:
    """Best degrees by number of products, a column per format."""
    found = {(r["products"], r["format"], r["lower"]): r for r in data["degrees"]}
    columns = list(dict.fromkeys(key[1:] for key in found))
    rows = [
        [str(m)]
        + [f"{listed(found[m, *c]['degrees'])}: {value(found[m, *c]['error'])}" for c in columns]
        for m in dict.fromkeys(key[0] for key in found)
    ]
    return table(["products", *(f"{f}, l = {low:g}" for f, low in columns)], rows)


def steps_table(data: Data) -> str:
    """Errors of single steps."""
    rows = [
        [r["format"], str(r["n"]), listed(r["error"], ".2f"), listed(r["outward"], ".2f")]
        for r in data["single steps"]
    ]
    return table(["format", "n", "error, steps 1 to 5", "beyond the image, steps 1 to 5"], rows)


def shares_table(data: Data) -> str:
    """Errors by share of the bound."""
    keys = ("error", "rounded alike", "largest")
    rows = [
        [r["format"], f"{r['share']:g}", *(value(r[k]) for k in keys), f"{r['above 1.3']:.1e}"]
        for r in data["shares"]
    ]
    return table(["format", "share", *keys, "above 1.3"], rows)


def narrow_table(data: Data) -> str:
    """Distances in 8 bits."""
    rows = [
        [r["format"], f"{r['lower']:g}", str(r["steps"]), value(r["error"])]
        + [f"{d:.2f}" for d in r["distance"].values()]
        for r in data["eight bits"]
    ]
    head = ["format", "lower", "steps", "error", "σ in [0.3, 1]", "[0.1, 1]", "[0.01, 1]"]
    return table(head, rows)


def restarts_table(data: Data) -> str:
    """Restarts of the Gram form."""
    rows = [
        [r["format"], r["schedule"], listed(r["slopes"], ".2f"), listed(r["restarts"]) or "none"]
        for r in data["restarts"]
    ]
    return table(["format", "schedule", "slopes", "restarts after"], rows)


def summary(data: Data) -> str:
    """The sentences on top of the page."""
    (five,) = [r for r in data["errors"] if (r["format"], r["steps"]) == ("bfloat16", 5)]
    own = [r for r in data["largest"] if r["schedule"] == "for_precision"]
    tops = {
        wide: max(t for r in own if r["format"].startswith("float8") != wide for t in _tops(r))
        for wide in (True, False)
    }
    lost = sorted(
        {
            f"`{r['schedule']}`"
            for r in data["largest"]
            if r["schedule"] != "for_precision" and None in r["largest"].values()
        }
    )
    exact, rounded = five["errors"]["for_precision"]
    _, other = five["errors"]["greedy, recipe"]
    text = (
        f"Five steps that `design.for_precision` designs for bfloat16 on [1e-3, 1] have a worst "
        f"error of {exact:.3f} in exact arithmetic and {rounded:.3f} with rounding; the usual "
        f"recipe (greedy, cushion 0.01, safety 1 + 2u) has {other:.3f} with rounding. No design "
        f"of `for_precision` diverges on the hostile matrices below: the largest singular value "
        f"is {tops[True]:.3f} in 16 bits and {tops[False]:.3f} in 8 bits. "
        f"{', '.join(lost[:-1])} and {lost[-1]} diverge in an 8-bit format."
    )
    return textwrap.fill(text, 100)


def _tops(row: Data) -> list[float]:
    return [float("inf") if t is None else t for t in row["largest"].values()]


TEXT = """# Design for a number format: the measurements

{summary}

Made by `python benchmarks/lowbits.py --markdown docs/evidence/precision.md` from
[data/lowbits.json](../data/lowbits.json), which `python benchmarks/lowbits.py --json
docs/data/lowbits.json` measured. [Number formats](../guide/precision.md) has the model and an
example. u is the unit roundoff: 2⁻⁸ in bfloat16, 2⁻¹¹ in float16, 2⁻⁴ and 2⁻³ in the 8-bit formats
e4m3 and e5m2. Formats are simulated: operands rounded as on hardware, products accumulated in
single precision, one rounding of each result. Every step has degree 5 and takes 3 products, where
no degree is given.

## Errors

Worst error on [1e-3, 1]: in exact arithmetic / in the format, on matrices whose entries are rounded
alike ({phases} of them, 2100 singular values each). *No rounding*: the least error in exact
arithmetic, by a schedule that diverges in 16 bits. *Greedy, recipe*: a greedy schedule with cushion
0.01 and safety 1 + 2u. The published sets are Polar Express with safety 1.01, 1.02 and 1.05.

{errors}

From seven steps on the exact error is below u, and the rounding of the last step dominates.

Measured on full matrices, n = {n}, log-uniform singular values, three seeds: worst |1 − σ|, and the
distance ‖Q − U‖_F / √n.

{measured}

Rounding of the input perturbs singular values by about u/√n times the largest one, and by up to u
where entries are rounded alike. Zero singular values become rounding error of that size, which a
schedule multiplies by its slope: [zero singular values](stress.md#zero-singular-values).

## Largest singular values

{hostile}

{largest}

## Degrees

Best sequences for a number of products (`matmuls=`, `degrees=(3, 5)`) with their exact errors. The
search of `design.budget` adds a fifth of the bound of every rounding to the errors, and uses no
product for an improvement below 1/64 of one rounding.

{degrees}

Steps of degree 3 come first, or last, where all values are near 1 and degree 3 has less rounding.

## Rounding error of a single step

Error of a step on all spectra of `polarlib.testing`, spectral norm 1, in units of u times the error
amplification Σ|cᵢ| x^(2i+1) at the upper end x. It does not grow with n. The last column is the
largest distance of a singular value above the exact image of the interval, in the same units.

{steps}

For the first step at l = 1e-3 the bound r(1) is {ratio} of the error amplification.

## The share of the bound

Designs of five steps with a smaller or larger share of the bound kept free above the upper end, on
3 × {phases} matrices whose entries are rounded alike. On such matrices the rounding error is
closest to the bound. Singular values leave the interval only if all three roundings go outward, in
every step. 0.75 is the smallest multiple of a quarter at which no value did, in any format.

{shares}

## Eight bits

Distance ‖Q − U‖_F / √n, n = 128, log-uniform spectra, of designs with the number of steps that
reaches an error of u.

{narrow}

With lower = 0.1, singular values above 0.1 are mapped into the error band. With 0.01, two more
steps are needed, and the error on wide spectra is smaller. With 0.001, the error is not smaller.
Each 8-bit matrix carries a power of two that brings its largest entry to between a quarter and six
tenths of the largest number. Entries below 2⁻¹⁸ (e4m3) or 2⁻³² (e5m2) times the largest are lost.

## Gram form

Restarts that `design.restarts` chooses for the rounding of R and Q and the upper margin of a
schedule ([the Gram form](../guide/gram.md)).

{restarts}
"""


def page(data: Data) -> str:
    """Return the page."""
    names = ", ".join(data["hostile"])
    rest = " (not at n = 1024)" if any("1024" in r["largest"] for r in data["largest"]) else ""
    hostile = (
        f"Largest singular value of the result, over {len(data['hostile'])} matrices ({names}) "
        "with largest singular value 1. The input is divided by the Frobenius norm, by the "
        f"spectral bound, or by nothing{rest}. Three seeds up to n = 256, then one. "
        "In the 8-bit formats the designs and the recipe are for lower = 0.1."
    )
    return TEXT.format(
        summary=summary(data),
        phases=data["phases"],
        n=data["n"],
        hostile=textwrap.fill(hostile, 100),
        errors=error_table(data),
        measured=measured_table(data),
        largest=largest_table(data),
        degrees=degrees_table(data),
        steps=steps_table(data),
        ratio=data["first step"]["bound over amplification"],
        shares=shares_table(data),
        narrow=narrow_table(data),
        restarts=restarts_table(data),
    )
