"""The Gram form in 16-bit formats: rounding errors, restarts and cost.

    python benchmarks/gram.py [--write] [--quick]

With --write the figures and the tables of docs/guide/gram.md and docs/evidence/gram.md are
replaced. Number formats are simulated on NumPy: operands rounded as on hardware, products
accumulated in single precision, one rounding of each result. Nothing is timed. About a minute on
one core.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib
import numpy as np
import typer
from common import replace_part
from matplotlib.figure import Figure
from rich.console import Console

import polarlib
from polarlib import Schedule, design, plot
from polarlib._schedules.products import product_counts
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to
from polarlib.files.whole import write_whole
from polarlib.testing import SPECTRA, spectrum, with_singular_values

ADVERSARIAL = SPECTRA[11:]
DOCS = Path(__file__).resolve().parent.parent / "docs"
GUIDE, EVIDENCE = DOCS / "guide" / "gram.md", DOCS / "evidence" / "gram.md"
SHAPES = ((512, 64), (256, 64), (256, 192))
# Formats of X and of the n x n matrices.
FORMATS = (
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float16"),
    ("bfloat16", "float32"),
    ("float16", "float16"),
)
STEPS = 5
# Sets with a small upper margin, in the table of formats.
TWO = ("polar_express", "for_precision")
# Larger values have no meaning and are drawn at the edge.
EDGE = 1e6


class Seen(NamedTuple):
    """Eigenvalues and errors of one step."""

    least: float  # smallest eigenvalue of R before it, over the largest
    absolute: float  # the same, not divided
    drift: float  # ||X (Q - Q in double precision)|| after it
    rounding: float  # ||X (Q rounded to the format of X - Q)|| after it


def schedules() -> dict[str, Schedule]:
    """Return sets with and without an upper margin."""
    names = ("polar_express", "polar_express_105", "you", "jordan")
    return {n: polarlib.schedule(n, steps=STEPS) for n in names} | {
        "for_precision": design.for_precision("bfloat16", 1e-3, steps=STEPS)
    }


def matrices(shape: tuple[int, int], names: Sequence[str], seeds: int) -> Iterator[np.ndarray]:
    """Yield matrices with given spectra."""
    for name in names:
        for seed in range(seeds):
            s = spectrum(name, shape[1])
            yield with_singular_values(s, *shape, seed=seed).astype(np.float32)


def to(a: np.ndarray, name: str) -> np.ndarray:
    """Round once to a format."""
    a = np.asarray(a, dtype=np.float32)
    return a if name == "float32" else round_to(a, format_of(name), ops_of(a))


def gram_form(
    x: np.ndarray,
    s: Schedule,
    of_x: str,
    of_gram: str,
    restarts: Sequence[int],
    *,
    split: bool = False,
    watch: Callable[..., None] | None = None,
) -> np.ndarray:
    """Apply the Gram form, written out because the library does not return R.

    `split` applies Q in two parts, each in the format of X. ``watch(x, r, q, step, starts)`` is
    called in every step, with R before it and Q after it.
    """
    f, starts = np.float32, True
    x = to(x, of_x)
    for k, (c0, c1, c2) in enumerate(s.steps, 1):
        if starts:
            r, q = to(x.T @ x, of_gram), np.eye(x.shape[1], dtype=f)
        z = to((r @ r) * f(c2) + r * f(c1), of_gram)
        q = to(q @ z + q * f(c0), of_gram)
        if watch is not None:
            watch(x, r, q, (c0, c1, c2), starts)
        ends = k in restarts or k == len(s)
        if ends and starts:  # a segment of one step: no identity is rounded together with Z
            x = to(x @ to(z, of_x) + x * f(c0), of_x)
        elif ends:
            first = to(q, of_x)
            x = to(x @ first + (x @ to(q - first, of_x) if split else f(0)), of_x)
        else:
            r = to(r @ z + r * f(c0), of_gram)
            r = to(z @ r + r * f(c0), of_gram)
        starts = ends
        if not all(np.isfinite(v).all() for v in (x, r, q)):
            break
    return x


def steps_seen(
    a: np.ndarray, s: Schedule, of_x: str, of_gram: str, restarts: Sequence[int]
) -> list[Seen]:
    """Compare each step with the same step in double precision from the same X."""
    seen: list[Seen] = []
    exact: dict[str, np.ndarray] = {}

    def watch(
        x: np.ndarray, r: np.ndarray, q: np.ndarray, step: Sequence[float], starts: bool
    ) -> None:
        wide = x.astype(np.float64)
        if starts:
            exact["r"], exact["q"] = wide.T @ wide, np.eye(len(r))
        p = step[2] * exact["r"] @ exact["r"] + step[1] * exact["r"] + step[0] * np.eye(len(r))
        exact["q"] = exact["q"] @ p
        exact["r"] = p @ exact["r"] @ p
        values = np.linalg.eigvalsh((r + r.T).astype(np.float64) / 2)
        rounding = to(exact["q"], of_x) - exact["q"]
        seen.append(
            Seen(
                values[0] / values[-1],
                values[0],
                top(wide @ (q - exact["q"])),
                top(wide @ rounding),
            )
        )

    gram_form(a / (np.linalg.norm(a) * s.input_safety), s, of_x, of_gram, restarts, watch=watch)
    return seen


# -- figures ---------------------------------------------------------------------------------


def spurious() -> Figure:
    """Draw the smallest eigenvalue of R by step, with and without restarts, by formats."""
    fig = Figure(figsize=(7.0, 5.4))
    axes = fig.subplots(2, 2, sharex=True, sharey=True).ravel()
    a = next(matrices((512, 64), ["log 1e-7"], 1))
    looks = (("polar_express", plot.BLUE, "o"), ("jordan", plot.ORANGE, "s"))
    for ax, (of_x, of_gram) in zip(axes, FORMATS, strict=True):
        unit, negative = format_of(of_gram).unit_roundoff, False
        for name, colour, marker in looks:
            s = schedules()[name]
            auto = design.restarts(s, of_x, gram_format=of_gram if of_gram != of_x else None)
            told = ", ".join(map(str, auto)) or "none needed"
            for at, line, label in ((), "--", "no restart"), (auto, "-", f"after {told}"):
                with np.errstate(all="ignore"):
                    seen = steps_seen(a, s, of_x, of_gram, at)
                least = np.array([-v.least for v in seen])
                negative |= bool((least > 0).any())
                ax.semilogy(
                    np.arange(1, len(seen) + 1),
                    np.where(least > 0, np.minimum(least, EDGE), np.nan),
                    line,
                    color=colour,
                    marker=marker,
                    markerfacecolor=colour if at else "white",
                    label=f"{name}, {label}",
                )
        if not negative:
            ax.text(0.5, 0.35, "no eigenvalue is negative", ha="center", transform=ax.transAxes)
        ax.axhline(unit, color=plot.INK, linewidth=0.8, linestyle=":")
        ax.annotate("u", (5.15, unit), va="center")
        ax.axhline(0.1, color=plot.INK, linewidth=0.8, linestyle="-.")
        same = of_x == of_gram
        ax.set_title(f"all in {of_x}" if same else f"X in {of_x}, n × n in {of_gram}")
        ax.legend(loc="upper left")
    axes[0].set_xlim(0.8, 5.4)
    axes[0].set_xticks(range(1, STEPS + 1))
    axes[0].set_ylim(1e-8, 2 * EDGE)
    for ax in axes[2:]:
        ax.set_xlabel("before step")
    for ax in axes[::2]:
        ax.set_ylabel("− smallest eigenvalue of R / largest")
    return fig


def work(aspect: float, restarts: int | None, symmetric: float = 1.0) -> float:
    """Return the work of five degree-5 steps in n x n products; the plain form for None.

    `symmetric` is the cost of a product with a symmetric result: all that are n x n, since Q and R
    commute, and half of those with X.
    """
    steps = [(1.0, 1.0, 1.0)] * STEPS
    form = "plain" if restarts is None else "gram"
    large, small = product_counts(steps, form=form, restarts=range(1, (restarts or 0) + 1))
    return large / 2 * aspect * (1 + symmetric) + small * symmetric


def saved(aspect: float, restarts: int, symmetric: float = 1.0) -> float:
    """Return the percentage of the plain form's work that the Gram form saves."""
    return 100 * (1 - work(aspect, restarts, symmetric) / work(aspect, None, symmetric))


def savings() -> Figure:
    """Draw the work saved against the aspect ratio."""
    fig = Figure(figsize=(7.0, 3.2))
    axes = fig.subplots(1, 2, sharey=True)
    aspects = np.geomspace(1, 32, 101)
    looks = ((plot.BLUE, "-"), (plot.ORANGE, "--"), (plot.GREEN, "-."), (plot.VERMILLION, ":"))
    titles = ("all products alike", "products with symmetric results at half")
    for ax, symmetric, title in zip(axes, (1.0, 0.5), titles, strict=True):
        for k, (colour, line) in enumerate(looks):
            label = f"{k} restart{'s' * (k != 1)}"
            values = [saved(r, k, symmetric) for r in aspects]
            ax.plot(aspects, values, line, color=colour, label=label)
        ax.axhline(0, color=plot.INK, linewidth=0.6)
        ax.set_xscale("log", base=2)
        ax.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        ax.set_xlabel("aspect ratio m / n")
        ax.set_title(title)
    axes[0].set_ylim(-60, 80)
    axes[0].set_ylabel("work saved (%)")
    axes[0].legend(loc="lower right")
    return fig


# -- tables ----------------------------------------------------------------------------------


def top(q: np.ndarray) -> float:
    """Return the largest singular value; infinite where the result is not finite."""
    return float(np.linalg.norm(q.astype(float), 2)) if np.isfinite(q).all() else np.inf


def plainly(value: float) -> str:
    """Write three decimals, or a power of ten."""
    return f"{value:.3f}" if value < 100 else "not finite" if np.isinf(value) else f"{value:.0e}"


def largest(seeds: int, shapes: Sequence[tuple[int, int]]) -> str:
    """Return the table of largest singular values over the adversarial spectra."""
    lines = [
        "| X | n × n | schedule | plain form | no restart | restarts after | with them |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for of_x, of_gram in FORMATS:
        for name, s in schedules().items():
            other = None if of_gram == of_x else of_gram
            at = design.restarts(s, of_x, gram_format=other)
            ways: list[dict[str, Any]] = [
                {"form": "plain"},
                {"form": "gram", "restarts": (), "gram_precision": other},
                {"form": "gram", "restarts": at, "gram_precision": other},
            ]
            found = [0.0] * len(ways)
            for shape in shapes:
                for a in matrices(shape, ADVERSARIAL, seeds):
                    for i, way in enumerate(ways):
                        with warnings.catch_warnings(), np.errstate(all="ignore"):
                            warnings.simplefilter("ignore", polarlib.ScheduleWarning)
                            q = polarlib.orthogonalize(a, schedule=s, precision=of_x, **way)
                        found[i] = max(found[i], top(q))
            places = ", ".join(map(str, at)) or "none"
            plain, none, some = map(plainly, found)
            lines.append(f"| {of_x} | {of_gram} | {name} | {plain} | {none} | {places} | {some} |")
    return "\n".join(lines)


def formats(seeds: int, shapes: Sequence[tuple[int, int]]) -> str:
    """Return the table of excesses over the plain form, with R and Q in another format."""
    places = [(), (1,), (2,), (3,), (1, 3), (1, 2, 3)]
    ways = [(f"X in {x}, n × n in {g}", x, g, False) for x, g in FORMATS]
    ways.insert(3, ("X in bfloat16, n × n in float32, Q in two parts", "bfloat16", "float32", True))
    found = {(way[0], name, at): 0.0 for way in ways for name in TWO for at in places}
    for name in TWO:
        s = schedules()[name]
        for a in (a for shape in shapes for a in matrices(shape, SPECTRA, seeds)):
            for norm in (np.linalg.norm(a), np.linalg.norm(a, 2)):
                x = a / (norm * s.input_safety)
                plain: dict[str, float] = {}
                for way, of_x, of_gram, split in ways:
                    if of_x not in plain:
                        q = polarlib.orthogonalize(
                            x, schedule=s, precision=of_x, form="plain", normalisation="none"
                        )
                        plain[of_x] = max(top(q), 1.0)
                    for at in places:
                        with np.errstate(all="ignore"):
                            y = gram_form(x, s, of_x, of_gram, at, split=split)
                        key = (way, name, at)
                        found[key] = max(found[key], top(y) - plain[of_x])
    told = [", ".join(map(str, at)) or "none" for at in places]
    lines = [f"| restarts after | {' | '.join(told)} |", f"| --- |{' --- |' * len(told)}"]
    for label, *_ in ways:
        cells = (", ".join(plainly(found[label, n, at]) for n in TWO) for at in places)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sharpness(seeds: int, shapes: Sequence[tuple[int, int]]) -> str:
    """Return the table of errors in units of the two bounds, by steps without a restart."""
    lines = [
        "| format | schedule | quantity | step 1 | step 2 | step 3 | step 4 | step 5 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("bfloat16", "float16"):
        unit = format_of(name).unit_roundoff
        for set_name in ("polar_express", "jordan"):
            s = schedules()[set_name]
            worst = np.zeros((3, STEPS))
            for shape in shapes:
                for a in matrices(shape, SPECTRA, seeds):
                    with np.errstate(all="ignore"):
                        seen = steps_seen(a, s, name, name, ())
                    for k, v in enumerate(seen):
                        worst[:, k] = np.maximum(worst[:, k], (-v.absolute, v.drift, v.rounding))
            slopes = np.cumprod([abs(step[0]) for step in s.steps])
            before = np.concatenate([[1.0], slopes[:-1] ** 2])
            for quantity, values in (
                ("−λ of R before / (u Π a²)", worst[0] / (unit * before)),
                ("error of Q after / (u Π a)", worst[1] / (unit * slopes)),
                ("of one rounding of Q / (u Π a)", worst[2] / (unit * slopes)),
            ):
                told = " | ".join(f"{v:.2f}" if v < 10 else f"{v:.0e}" for v in values)
                lines.append(f"| {name} | {set_name} | {quantity} | {told} |")
    return "\n".join(lines)


def costs() -> str:
    """Return the table of work by aspect ratio and restarts."""
    lines = [
        "| m / n | plain | 0 restarts | 1 | 2 | 3 | saved (%) | symmetric at half: saved (%) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in (1, 1.5, 2, 3, 4, 8, 16, 32):
        units = " | ".join(f"{work(r, k):g}" for k in (None, 0, 1, 2, 3))
        shares = " | ".join(
            ", ".join(f"{saved(r, k, half):.0f}" for k in range(4)) for half in (1.0, 0.5)
        )
        lines.append(f"| {r:g} | {units} | {shares} |")
    return "\n".join(lines)


def summary(table: str) -> str:
    """Return the sentences on top of the page of measurements, from the table of `largest`."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    own = {r[0]: r for r in rows if r[0] == r[1] and r[2] == "polar_express"}
    excess = max(float(r[6]) - float(r[3]) for r in own.values())
    places = {f: len(r[5].split(", ")) for f, r in own.items()}
    words = [f"{n} restart{'s' * (n != 1)} in {f}" for f, n in places.items()]
    return (
        f"Polar Express needs {' and '.join(words)}, and diverges without them.\nWith them the "
        f"largest singular value exceeds that of the plain form by at most {excess:.3f}."
    )


def main(
    write: Annotated[bool, typer.Option("--write", help="Write figures and pages.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer matrices.")] = False,
) -> None:
    """Make the figures and tables."""
    console = Console()
    seeds, shapes = (1, SHAPES[:1]) if quick else (2, SHAPES)
    table = largest(seeds, shapes)
    parts = {
        GUIDE: {"costs": costs()},
        EVIDENCE: {
            "summary": summary(table),
            "sharpness": sharpness(1, shapes),
            "largest": table,
            "formats": formats(seeds, shapes),
        },
    }
    for page, bodies in parts.items():
        for name, body in bodies.items():
            console.print(f"{name}\n{body}\n", markup=False, soft_wrap=True)
            if write:
                replace_part(page, name, body)
    if not write:
        return
    # The same values give bitwise identical files.
    with plot.style("page"), matplotlib.rc_context({"svg.hashsalt": "polarlib"}):
        for name, draw in {"gram_restarts": spurious, "gram_savings": savings}.items():
            fig = draw()
            for suffix, extra in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
                save = functools.partial(fig.savefig, format=suffix, **extra)
                write_whole(DOCS / "figures" / f"{name}.{suffix}", save)


if __name__ == "__main__":
    typer.run(main)
