"""The page docs/evidence/stress.md and its figure, from the data that stress.py measures."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import reflow, table
from stress_cases import ADVERSARIAL, DIVERGED, FORMATS, METRICS, SAFE, STRESS, default_of

from polarlib.arrays.formats import format_of
from polarlib.files.whole import write_whole

Row = dict[str, Any]
GROUPS = {
    "stress": f"The {len(STRESS)} spectra of gram-newton-schulz's stress test",
    "adversarial": f"The {len(ADVERSARIAL)} adversarial spectra",
    "gradients": "The bundled gradients",
}
SHOWN = "bfloat16"  # the format of the tables of means; the data have the others


def number(x: float | None) -> str:
    """Write three digits; None or a value above the limit is a result that diverged."""
    return f"{x:.3g}" if x is not None and abs(x) < DIVERGED else "diverges"


def four_digits(x: float) -> str:
    """Write four decimals, or one digit of a number that is small for that."""
    return f"{x:.4f}" if x >= 1e-3 else f"{x:.0e}"


# -- comparisons -----------------------------------------------------------------------------


def _pairs(row: Row, key: str) -> list[str]:
    both = zip(row["published"][key], row["default"][key], strict=True)
    return [f"{number(p)} / {number(d)}" for p, d in both]


def _with_counts(row: Row) -> list[str]:
    won = zip(*row["counts"], strict=True)
    pairs = zip(_pairs(row, "mean"), won, strict=True)
    return [f"{pair} ({'-'.join(map(str, counts))})" for pair, counts in pairs]


def mean_table(rows: Sequence[Row]) -> str:
    """Means: published / default, and the counts of spectra."""
    lines = []
    for row in rows:
        won = zip(*row["counts"], strict=True)
        cells = [
            f"{c} ({a}-{b}-{z})" for c, (a, b, z) in zip(_pairs(row, "mean"), won, strict=True)
        ]
        lines.append([f"`{row['name']}`", str(row["products"]), _lost(row), *cells])
    return table(["set", "products", "diverges", *METRICS], lines)


def _lost(row: Row) -> str:
    return f"{row['diverges']} of {row['results']}"


def better_table(rows: Sequence[Row]) -> str:
    """Published sets whose mean is better than the default's, by group, format and metric."""
    lines = []
    for group in GROUPS:
        for precision in FORMATS:
            own = [r for r in rows if (r["group"], r["format"]) == (group, precision)]
            names = [
                ", ".join(f"`{r['name']}`" for r in own if r["outcome"][k] < 0) or "none"
                for k in range(len(METRICS))
            ]
            if own:
                lines.append([group, precision, *names])
    return table(["matrices", "format", *METRICS], lines)


def scalar_table(rows: Sequence[Row]) -> str:
    """Worst scalar errors on [1e-3, 1]."""
    lines = []
    for r in rows:
        cells = [four_digits(e) for e in (r["published"], *r["design"], *r["default"])]
        lines.append([f"`{r['name']}`", str(r["products"]), *cells])
    own = (f"{kind}, {f}" for kind in ("for this interval", "default") for f in FORMATS)
    return table(["set", "products", "published", *own], lines)


def others_table(rows: Sequence[Row]) -> str:
    """Sets for other functions, and designs for them."""
    lines = [
        [r["name"], r["function"], r["interval"], str(r["products"]), *map(number, r["errors"])]
        for r in rows
    ]
    header = ["schedule", "function", "interval", "products", "worst error"]
    return table([*header, "on matrices"], lines)


def gentle_table(rows: Sequence[Row]) -> str:
    """Means of sets that are accurate near 1, of the default schedule and of designs."""
    lines = [
        [r["format"], r["name"], str(r["products"]), f"{r['slope']:.0f}", *map(number, r["means"])]
        for r in {(r["format"], r["name"], r["products"]): r for r in rows}.values()
    ]
    return table(["format", "schedule", "products", "slope at 0", *METRICS], lines)


def zero_table(rows: Sequence[Row]) -> str:
    """Rank-deficient matrices."""
    lines = []
    for r in rows:
        d = r["distances"]
        lines.append(
            [r["name"], r["shape"], number(r["noise"]), number(d["default"]),
             f"{number(d['published'])} (`{r['best']}`)", number(d["float16"]),
             number(d["float32"]), f"{number(d['design'])} ({r['products']})",
             number(d["truncated"])]
        )  # fmt: skip
    header = ["singular values", "shape", "rounding error", "default", "closest published set"]
    remedies = ["default, float16", "default, float32", "design (products)", "`top_singular`"]
    return table([*header, *remedies], lines)


def safety_table(rows: Sequence[Row]) -> str:
    """Largest singular value in every form; losses; least alignment."""
    columns = list(rows[0]["found"])
    lines = []
    for row in rows:
        there = [s for s in row["found"].values() if s is not None]
        cells = ["–" if (s := row["found"][c]) is None else number(s["largest"]) for c in columns]
        worst = max(there, key=lambda s: float("inf") if s["largest"] is None else s["largest"])
        lines.append(
            [row["format"], f"`{row['name']}`", *cells, str(sum(s["lost"] for s in there)),
             f"{min(s['smallest'] for s in there):.2g}", worst["where"]]
        )  # fmt: skip
    header = ["format", "set", *columns, "not finite", "least ⟨A, Q⟩ / ‖A‖_*", "worst at"]
    return table(header, lines)


# -- the other parts -------------------------------------------------------------------------


def range_table(rows: Sequence[Row]) -> str:
    """The worst of each format and normalisation."""
    lines = [
        [r["format"], r["normalisation"], str(r["results"]), str(r["not finite"])]
        + [f"{r['largest'][f]:.3f}" if r["largest"][f] is not None else "–" for f in _FORMS]
        + [r["worst at"], f"{r['aligned']:.3f}", f"{r['distance']:.3f}"]
        for r in rows
    ]
    header = ["format", "normalisation", "results", "not finite", "largest, plain", "gram"]
    return table([*header, "worst at", "least ⟨A, Q⟩ / ‖A‖_*", "κ = 2: ‖Q − U‖_F / √n"], lines)


_FORMS = ("plain", "gram")


def scale_table(rows: Sequence[Row]) -> str:
    """Differences of the factor under scaling."""
    lines = [
        [
            r["library"], r["format"], f"2^{r['low']} … 2^{r['high']}",
            f"{r['powers'] - r['differ']} of {r['powers']}", f"{r['powers worst']:.2f}",
            f"{r['worst']:.2f}",
            "0" if r["zero"] else "NOT 0",
        ]
        for r in rows
    ]  # fmt: skip
    header = ["library", "format", "powers of two", "bitwise identical", "distance at most, in u"]
    return table([*header, "other c: distance, in u", "c = 0"], lines)


def native_table(found: dict[str, list[Row]]) -> str:
    """Simulated and native bfloat16, step by step."""
    lines = []
    for shape, rows in found.items():
        for k, row in enumerate(rows, 1):
            cells = [
                cell
                for w in ("step", "all")
                for cell in (
                    f"{row[f'{w}, equal']:.5f}",
                    f"{row[f'{w}, units']:.2g}",
                    f"{row[f'{w}, distance']:.1e}",
                )
            ]
            lines.append([shape, str(k), *cells])
    header = ["shape", "step", "equal", "units at most", "distance"]
    return table([*header, "all steps: equal", "units at most", "distance"], lines)


def packages_table(rows: Sequence[Row]) -> str:
    """Means of other packages' own code."""
    lines = []
    for row in rows:
        if "published" in row:
            head = [row["name"], row["source"], str(row["products"]), _lost(row)]
            lines.append([*head, *_with_counts(row)])
    return table(["package", "source", "products", "diverges", *METRICS], lines)


def pitfall_table(rows: Sequence[Row]) -> str:
    """Large, tiny, zero and rank-one inputs."""
    header = list(rows[0]["pitfalls"])
    return table(["package", *header], [[r["name"], *r["pitfalls"].values()] for r in rows])


# -- the figure ------------------------------------------------------------------------------


def picture(rows: Sequence[Row]) -> Any:
    """Draw the ratio of means, published / default: a panel per metric, a marker per format."""
    from matplotlib.figure import Figure

    from polarlib.plot import COLOURS, INK, MARKERS

    own = [r for r in rows if r["group"] == "stress"]
    names = list(dict.fromkeys(r["name"] for r in own))
    top = 30.0  # ratios beyond are drawn at the edge
    drawn = Figure(figsize=(7, 1.1 + 0.145 * len(names)), layout="constrained")
    panels = drawn.subplots(1, len(METRICS), sharey=True)
    for j, (ax, metric) in enumerate(zip(panels, METRICS, strict=True)):
        for k, precision in enumerate(FORMATS):
            floor = format_of(precision).unit_roundoff
            found = {r["name"]: _ratio(r, j, floor) for r in own if r["format"] == precision}
            ax.plot(
                np.clip([found[name] for name in names], 1 / top, top), range(len(names)),
                linestyle="", color=COLOURS[k], marker=MARKERS[k], markersize=3.6,
                mfc="none" if k else COLOURS[k], label=precision,
            )  # fmt: skip
        ax.axvline(1.0, color=INK, linewidth=0.8, linestyle="--")
        ax.set_xscale("log")
        ax.set_xlim(0.7 / top, 1.4 * top)
        ax.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        ax.minorticks_off()
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.grid(axis="y", color="#E5E5E5", linewidth=0.5)
        ax.set_title(metric, fontsize="medium")
    panels[0].set_yticks(range(len(names)), names, fontsize="small")
    panels[len(METRICS) // 2].set_xlabel("mean of the published set / mean of the default schedule")
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return drawn


def _ratio(row: Row, j: int, floor: float) -> float:
    published, default = (row[side]["mean"][j] for side in ("published", "default"))
    return np.inf if published is None else max(published, floor) / max(default, floor)


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write the figure; the same data give bitwise identical files."""
    import matplotlib

    from polarlib import plot

    folder.mkdir(exist_ok=True)
    with plot.style("page"), matplotlib.rc_context({"svg.hashsalt": "polarlib"}):
        drawn = picture(rows)
        for suffix, extra in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
            save = functools.partial(drawn.savefig, format=suffix, **extra)
            write_whole(folder / f"stress.{suffix}", save)


# -- the page --------------------------------------------------------------------------------

TEXT = """# Stress test in low precision

{summary}

Made by `python benchmarks/stress.py --markdown docs/evidence/stress.md` from
[data/stress.json](../data/stress.json), which the same script measured ({machine}).
Formats are simulated: operands rounded as on hardware, products accumulated in single precision,
one rounding of each result. Plain form, with the normalisation and safety factor of each set. The
product that `turbo_muon` and `aol_nv` use to rescale columns is not counted.

## Metrics

The metrics are those of [Which error is which](../guide/measure.md), computed in double precision
against the matrix as it is stored in its format:

- *orthogonality* ‖QᵀQ − I‖_F / √n. Rank-deficient matrices cannot reach 0: their zero singular
  values stay zero, for every schedule;
- *backward error* ‖A − QH‖_F / ‖A‖_F with H = (QᵀA + AᵀQ)/2;
- *negative part*: Frobenius norm of the negative eigenvalues of H, over ‖A‖_F;
- *dual gap* |1 − ⟨A, Q⟩ / ‖A‖_*|;
- *bound violation* max(‖Q‖₂ − 1, 0).

Each cell is "published set / default schedule" of equally many products; smaller is better. In
parentheses: spectra on which the default is better − ties − spectra on which the set is better. A
spectrum counts by its mean over shapes and draws. A difference of at most one unit roundoff of the
format is a tie (2⁻⁸ in bfloat16, 2⁻¹¹ in float16, 2⁻²⁴ in float32). A result *diverges* if it is
not finite or has a singular value above {diverged:g}; it is counted, and left out of the means.

## Published sets

Shapes {shapes}; draws of each: {seeds}. Published sets with a better mean than the default
schedule:

{better}

{reach}

{gentle}

![Ratio of the means of published sets to those of the default schedule](../figures/stress.png)

*Means over the stress spectra. Right of the line the default schedule is better, left of it the
published set. Means below one unit roundoff count as one; ratios beyond 30 are drawn at the edge.*

{means}

The data file has the means in float16 and float32, and the worst cases.

## Scalar worst error

Worst |1 − s(x)| on [1e-3, 1], with the division of the input by the safety factor: of the published
sets, of `design.for_precision(format, 1e-3, matmuls=products)`, and of the default schedule. The
default schedule is designed for another interval and a tighter norm. It has smaller errors on
spectra, and larger ones on this interval
([decision 0011](../decisions/0011-own-schedules.md)).

{scalar}

Sets for other functions, and designs for the same function, in double precision: worst error on
the interval of the set (for `inverse_sqrt_nv` in x = √λ, the relative error of the root), and the
largest relative error ‖F(A) − f(A)‖₂ / ‖f(A)‖₂ on three 96 x 96 matrices, with values from
geometric to uniform in the interval. Products of `inverse_sqrt_nv` are those of the coupled
iteration, without the division by a bound.

{others}

## Zero singular values

Rounding a matrix to bfloat16 turns its zero singular values into values of about u / √n times the
largest one. A schedule multiplies them by its slope at 0, which is {slope} in the default schedule
of 15 products. The table has the distance ‖Q − U‖_F / √rank to the partial isometry U of the matrix
before rounding. *Rounding error*: largest singular value due to rounding, over the largest of all.

{zeros}

Three remedies: compute in float16 or float32 if the matrix has not been rounded to bfloat16; use
`design.for_precision("bfloat16", lower, matmuls=15)` in the normalisation of the default schedule,
with `lower` the smallest wanted singular value over the largest, at most 0.1; or truncate,
`u, s, vh = top_singular(a, rank)` and `u @ vh`.

## Safety

Largest singular value of the result in plain form, in Gram form and in the form that `form="auto"`
chooses, after five and nine steps, over {hostile} matrices, {safe_shapes}: the constant and the
Hadamard matrix, and the adversarial spectra {adversarial}. Sets that are not safe in a format
(`Schedule.is_safe_in`) are left out; `orthogonalize` warns of them.

{safety}

## Range

Largest singular value of the result of the default schedule, five steps, in every format and
normalisation (*none*: the matrix was divided by its spectral norm before). Matrices with Gaussian
entries, entries ±1, entries uniform on [0, 1], of rank one, with singular values from 1 to 0.5, and
with one singular value of 1 and all others 0.01. All formats on {all}; the narrow ones on {narrow}
too (bfloat16 not on the largest square, for which only the plain form and the schedule's own
normalisation were run). Each 8-bit matrix carries a power of two, as operands of 8-bit products do
on hardware. Products and norms accumulate in single precision. The last column is the distance to
the polar factor of the matrix with singular values from 1 to 0.5.

{range}

{count} results, of which {lost} are not finite; the largest singular value is {top:.2f} in 8 bits
and {sixteen:.3f} in 16 bits and more.

## Scale

Factors of c·A compared with that of A, with entries ±1, ±1.25, ±1.5, ±1.75. Powers of two keep them
exact down into the subnormal numbers; 24 other c between the smallest and the largest normal number
round A itself. No warning is raised.

{scale}

## Simulated and native bfloat16

The default schedule's five steps on a Gaussian matrix, simulated on NumPy and native in torch:
fraction of equal entries, largest difference in units in the last place (entries below the root
mean square count with its unit), and relative distance; first for one step from the same iterate,
then over all steps so far.

{native}

## Other packages

Each package as its users call it, with its own normalisation, in torch (optax: JAX) on a CPU.
polarlib runs on the same arrays in the same format. Stress spectra, n = {n}. gram-newton-schulz
computes in float16 in every case, with its default restart; polarlib computes in bfloat16 there.

{packages}

Results for 1e25 A and 1e-30 A (the same factor is correct), for zero and for 50 random matrices of
rank one (results above {safe}), and the array that was passed:

{pitfalls}
"""


def summary(data: Row) -> str:
    """The sentences on top."""
    own = [r for r in data["compared"] if (r["group"], r["format"]) == ("stress", SHOWN)]
    k = METRICS.index("backward error")
    lost = [f"`{r['name']}`" for r in own if r["outcome"][k] < 0]
    gradients = [r for r in data["compared"] if (r["group"], r["format"]) == ("gradients", SHOWN)]
    worse = [f"`{r['name']}`" for r in gradients if r["outcome"][k] < 0]
    text = (
        f"Compared at equal matrix products in {SHOWN}, the default schedule has a mean backward "
        f"error at or below that of {len(own) - len(lost)} of the {len(own)} published sets on "
        f"the stress spectra, to one unit roundoff. The exceptions are {_and(lost)}; on the "
        f"bundled gradients they are {_and(worse)}. The largest singular value of its results on "
        f"{_cases(data)} hostile matrices is {_largest(data, 'default'):.3g}."
    )
    return textwrap.fill(text, 100)


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or "none"


def _cases(data: Row) -> int:
    return data["safety"][0]["cases"]


def _largest(data: Row, name: str) -> float:
    own = [r for r in data["safety"] if (r["name"], r["format"]) == (name, SHOWN)]
    return max(s["largest"] for r in own for s in r["found"].values() if s is not None)


REACH = """The default schedule of 15 products in bfloat16 has an error of {error:.3f} down to
{lower:.2g}, the lower end of its interval. A set for [1e-2, 1], or with a smaller slope at 0, can
have smaller errors near 1, and these dominate the backward error and the dual gap. Designs for
[1e-2, 1] with at most as many products, `design.for_precision(format, 1e-2, matmuls=products)` in
the normalisation of the default schedule, have the same property. Means on the stress spectra, one
draw of each:"""


def page(data: Row) -> str:
    """Return the page."""
    s = default_of(SHOWN, 15)
    parts = [
        f"### {title}, {SHOWN}\n\n{mean_table(own)}"
        for group, title in GROUPS.items()
        if (own := [r for r in data["compared"] if (r["group"], r["format"]) == (group, SHOWN)])
    ]
    ranged = data["range"]["rows"]

    def largest(bits8: bool) -> float:
        own = [r for r in ranged if r["format"].startswith("float8") == bits8]
        return max(v for r in own for v in r["largest"].values() if v is not None)

    text = TEXT.format(
        summary=summary(data),
        machine=data["machine"],
        diverged=DIVERGED,
        shapes=data["shapes"],
        seeds=data["seeds"],
        better=better_table(data["compared"]),
        reach=REACH.format(error=s.error(), lower=s.lower),
        gentle=gentle_table(data["gentle"]),
        means="\n\n".join(parts),
        scalar=scalar_table(data["scalar"]),
        others=others_table(data["others"]),
        slope=f"{s.slope:.0f}",
        zeros=zero_table(data["zeros"]),
        hostile=_cases(data),
        safe_shapes=data["safety shapes"],
        adversarial="; ".join(ADVERSARIAL),
        safety=safety_table(data["safety"]),
        all=", ".join(data["range"]["shapes"]["all"]),
        narrow=", ".join(data["range"]["shapes"]["narrow"]),
        range=range_table(ranged),
        count=sum(r["results"] for r in ranged),
        lost=sum(r["not finite"] for r in ranged),
        top=largest(True),
        sixteen=largest(False),
        scale=scale_table(data["scale"]),
        native=native_table(data["native"]),
        n=data["packages n"],
        packages=packages_table(data["packages"]),
        safe=SAFE,
        pitfalls=pitfall_table(data["packages"]),
    )
    return reflow(text)
