"""Evidence for polarlib.design.for_precision: what rounding does, and what the designs withstand.

    python benchmarks/lowbits.py [--markdown docs/guide/precision.md] [--quick]

Number formats are simulated on NumPy as hardware works: operands rounded, products accumulated in
single precision, one rounding of each result. Nothing is timed.
"""

from __future__ import annotations

import functools
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import scipy.linalg
import typer
from rich.console import Console

import polarlib
from polarlib import design
from polarlib._schedules.images import odd_value
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to, rounded
from polarlib.design import lowbits, rounding
from polarlib.engine.iterate import iterate
from polarlib.files.whole import write_whole
from polarlib.testing import SPECTRA, spectrum, with_singular_values

# Formats, and the lower ends that are sensible in them.
LOWER = {"bfloat16": 1e-3, "float16": 1e-3, "float8_e4m3": 1e-1, "float8_e5m2": 1e-1}
PUBLISHED = ("polar_express", "polar_express_102", "polar_express_105")


def hostile(name: str, n: int, seed: int) -> np.ndarray:
    """One hostile matrix with largest singular value 1."""
    rng = np.random.default_rng(seed)
    if name == "constant":  # every entry is rounded alike
        return np.full((n, n), 1 / n, np.float32)
    if name == "Hadamard":
        return (scipy.linalg.hadamard(n) / np.sqrt(n)).astype(np.float32)
    half = np.arange(n) < n // 2
    sigma = {
        "ones": lambda: np.ones(n),
        "rank one": lambda: spectrum("rank one", n),
        "rank two": lambda: spectrum("rank two", n),
        "two clusters": lambda: np.where(half, 1.0, 1e-3),
        "upper end": lambda: np.append(1.0, 1 - 0.02 * rng.random(n - 1)),
        "log-uniform": lambda: spectrum("log-uniform 1e-7", n),
        "half ones": lambda: np.where(half, 1.0, 0.0),
    }[name]()
    return with_singular_values(sigma, seed=seed).astype(np.float32)


HOSTILE = (
    *("ones", "rank one", "rank two", "two clusters", "upper end", "log-uniform", "half ones"),
    *("constant", "Hadamard"),
)


def result(
    a: np.ndarray, schedule: polarlib.Schedule, precision: str, normalisation: str
) -> np.ndarray:
    """One orthogonalisation, of schedules that are warned of too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return polarlib.orthogonalize(
            a, schedule=schedule, precision=precision, form="plain", normalisation=normalisation
        )


def largest(q: np.ndarray) -> float:
    """Largest singular value, infinity for a matrix that is not finite."""
    if not np.all(np.isfinite(q)):
        return np.inf
    wide = q.astype(np.float64)
    return float(np.sqrt(scipy.linalg.eigvalsh(wide.T @ wide)[-1]))


# -- chains of scalars that are rounded alike ------------------------------------------------------


def _rounded(x: np.ndarray, bits: int) -> np.ndarray:
    m, e = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(m, bits)), e - bits)


def chain_inputs(unit: float) -> np.ndarray:
    """Singular values from 1e-4 to 1, dense below 1."""
    return np.concatenate(
        [np.geomspace(1e-4, 0.9, 1500), np.linspace(0.9, 1, 500), 1 - np.arange(0, 2, 0.02) * unit]
    )


def chain(
    steps: Sequence[Sequence[float]],
    bits: int,
    phases: int,
    seed: int = 0,
    inputs: np.ndarray | None = None,
) -> np.ndarray:
    """Iterate matrices whose entries are all rounded alike, as scalars.

    A constant matrix of singular value x has entries x / n: where in its binade an entry of X or
    of the Gram matrix lies is a matter of n and of the shape, so both phases are random. Degrees up
    to 9, with the matrices that the engine rounds.

    Returns
    -------
    ndarray, shape (phases, inputs)
        Singular values of the result; unbounded ones are cut at 1e30.
    """
    rng = np.random.default_rng(seed)
    at_x, at_g = 2 ** rng.random((phases, 1)), 2 ** rng.random((phases, 1))
    x = chain_inputs(2.0**-bits) if inputs is None else inputs
    x = _rounded(x / at_x, bits) * at_x
    for step in steps:
        g, c = _rounded(x * x / at_g, bits) * at_g, step[1:]
        if len(c) == 4:  # two blocks
            powers = g, _rounded(g * g / at_g, bits) * at_g
            low, high = (
                _rounded((c[i] * powers[0] + c[i + 1] * powers[1]) / at_g, bits) * at_g
                for i in (0, 2)
            )
            z = _rounded((high * powers[1] + low) / at_g, bits) * at_g
        else:
            z = c[-1] * g if len(c) == 1 else (c[-1] * g + c[-2]) * g
            z = z if len(c) == 1 else _rounded(z / at_g, bits) * at_g
            for v in reversed(c[:-2]):
                z = _rounded((z + v) * g / at_g, bits) * at_g
        x = np.minimum(_rounded((x * z + step[0] * x) / at_x, bits) * at_x, 1e30)
    return x


def chain_error(schedule: polarlib.Schedule, precision: str, phases: int) -> tuple[float, float]:
    """Largest |1 - x| of the chains that start in the schedule's interval, and their largest x."""
    bits = format_of(precision).significand
    inside = chain_inputs(2.0**-bits) >= 1.01 * schedule.lower
    divided = [[c / schedule.input_safety ** (2 * i + 1) for i, c in enumerate(schedule.steps[0])]]
    x = chain([*divided, *schedule.steps[1:]], bits, phases)[:, inside]
    return float(np.abs(1 - x).max()), float(x.max())


def escapes(share: float, precision: str, phases: int) -> tuple[float, float, float, float]:
    """Design with another share of the bound: error, chain error, largest, share of escapes."""
    before, rounding.UPWARD = rounding.UPWARD, share
    try:
        s = lowbits.for_precision(precision, LOWER[precision], steps=5)
    finally:
        rounding.UPWARD = before
    bits = format_of(precision).significand
    inside = chain_inputs(2.0**-bits) >= 1.01 * s.lower
    x = np.concatenate([chain(s.steps, bits, phases, seed)[:, inside] for seed in range(3)])
    return s.error(), float(np.abs(1 - x).max()), float(x.max()), float(np.mean(x > 1.3))


# -- tables ----------------------------------------------------------------------------------------


def figure(x: float) -> str:
    """Four digits, or what it is."""
    return "—" if np.isnan(x) else f"{x:.4g}" if np.isfinite(x) and x < 1e4 else "diverges"


def rows_of(header: Sequence[str], rows: Iterator[Sequence[str]] | list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published(name: str, steps: int) -> polarlib.Schedule | None:
    """A published list of so many steps, if there is one."""
    try:
        return polarlib.schedule(name, steps=steps)
    except ValueError:
        return None


def recipe(precision: str, lower: float, steps: int) -> polarlib.Schedule:
    """Greedy with cushion 0.01 and safety 1 + 2 u: what one does without a model."""
    unit = format_of(precision).unit_roundoff
    return design.greedy(lower, [5] * steps, safety=min(2 * unit, 0.3), cushion=0.01)


@functools.cache
def rivals(precision: str, lower: float, steps: int) -> dict[str, polarlib.Schedule | None]:
    """Schedules to compare."""
    return {
        "for_precision": lowbits.for_precision(precision, lower, steps=steps),
        "greedy, recipe": recipe(precision, lower, steps),
        **{name: published(name, steps) for name in PUBLISHED},
    }


def error_table(phases: int) -> str:
    """Scalar worst error and that under coherent rounding, per number of quintics."""
    rows = []
    for precision in ("bfloat16", "float16"):
        for k in (4, 5, 6, 7, 8, 9):
            cells = []
            for s in rivals(precision, 1e-3, k).values():
                if s is None:
                    cells.append("—")
                else:
                    noisy, _ = chain_error(s, precision, phases)
                    cells.append(f"{figure(s.error())} / {figure(noisy)}")
            exact = design.greedy(1e-3, [5] * k).error()
            rows.append([precision, str(k), str(3 * k), figure(exact), *cells])
    header = ["format", "quintics", "products", "no rounding", *rivals("bfloat16", 1e-3, 5)]
    return rows_of(header, rows)


def degrees_table() -> str:
    """Best degrees for a number of products."""
    rows = []
    for m in range(12, 22):
        row = [str(m)]
        for precision in LOWER:
            s = lowbits.for_precision(precision, LOWER[precision], matmuls=m, degrees=(3, 5))
            row.append(f"{', '.join(str(2 * len(c) - 1) for c in s.steps)}: {figure(s.error())}")
        rows.append(row)
    return rows_of(["products", *(f"{f}, {lower:g}" for f, lower in LOWER.items())], rows)


def noise_table(sizes: Sequence[int]) -> str:
    """Measured error of single steps in units of u times the noise gain."""
    rows = []
    for precision, lower in LOWER.items():
        form = format_of(precision)
        s = lowbits.for_precision(precision, lower, steps=5)
        described = lowbits.table(s)
        base = ops_of(np.zeros((1, 1), np.float32))
        ops = rounded(base, precision)
        for n in sizes:
            error, outward = np.zeros(5), np.zeros(5)
            for name in SPECTRA:
                a = with_singular_values(spectrum(name, n), seed=n)
                x = round_to((a / np.linalg.norm(a, 2)).astype(np.float32), form, base)
                for k, step in enumerate(s.steps):
                    y = iterate(x, [step], ops)
                    u, sigma, v = scipy.linalg.svd(x.astype(float))
                    exact = (u * odd_value(step, sigma)) @ v
                    unit = form.unit_roundoff * described[k]["noise_gain"]
                    error[k] = max(error[k], np.linalg.norm(y - exact, 2) / unit)
                    _, above = described[k]["image_lower"], described[k]["image_upper"]
                    outward[k] = max(outward[k], (largest(y) - above) / unit)
                    x = y
            rows.append(
                [precision, str(n), *(" ".join(f"{e:.2f}" for e in v) for v in (error, outward))]
            )
    return rows_of(["format", "n", "error, steps 1 to 5", "beyond the image, steps 1 to 5"], rows)


def share_table(phases: int) -> str:
    """What a smaller or larger share of the bound does."""
    rows = []
    for precision in LOWER:
        for share in (0.25, 0.5, 0.6, 0.65, 0.7, 0.75, 1.0):
            error, noisy, top, lost = escapes(share, precision, phases)
            rows.append(
                [precision, f"{share:g}", figure(error), figure(noisy), figure(top), f"{lost:.1e}"]
            )
    return rows_of(["format", "share", "error", "rounded alike", "largest", "above 1.3"], rows)


def stress_table(sizes: Sequence[int], console: Console) -> str:
    """Largest singular value over hostile matrices, two normalisations and none."""
    rows = []
    worst: dict[tuple[str, str, int], list[tuple[float, str]]] = {}
    for n in sizes:
        for seed in range(3 if n <= 256 else 1):
            for name in HOSTILE:
                a = hostile(name, n, seed)
                kinds = ("frobenius", "spectral", "none") if n <= 512 else ("frobenius", "spectral")
                for precision, lower in LOWER.items():
                    for k in (5, 9):
                        for label, s in rivals(precision, lower, k).items():
                            if s is None or (n > 128 and label != "for_precision"):
                                continue
                            found = max(
                                (largest(result(a, s, precision, kind)), f"{name}, {kind}")
                                for kind in kinds
                            )
                            worst.setdefault((precision, f"{k} {label}", n), []).append(found)
        console.print(f"n = {n} done")
    for precision in LOWER:
        for label in dict.fromkeys(key[1] for key in worst):
            cells = [
                max(worst[precision, label, n])[0] if (precision, label, n) in worst else np.nan
                for n in sizes
            ]
            where = max(v for n in sizes for v in worst.get((precision, label, n), []))[1]
            k, _, who = label.partition(" ")
            rows.append([precision, k, who, *map(figure, cells), where])
    return rows_of(["format", "quintics", "schedule", *map(str, sizes), "worst at"], rows)


def measured_table(n: int) -> str:
    """Worst |1 - sigma| measured, and distance to the polar factor, on log-uniform spectra."""
    rows = []
    for precision, low in (("bfloat16", 1e-2), ("float16", 1e-3), ("float16", 1e-2)):
        for label, s in rivals(precision, 1e-3, 5).items():
            if s is None:
                continue
            errors, distances = [], []
            for seed in range(3):
                sigma = np.geomspace(1, low, n)
                a = with_singular_values(sigma, seed=seed).astype(np.float32)
                q = result(a, s, precision, "none").astype(np.float64)
                u, _, v = scipy.linalg.svd(a.astype(np.float64))
                errors.append(np.abs(1 - scipy.linalg.svdvals(q)).max())
                distances.append(np.linalg.norm(q - u @ v) / np.sqrt(n))
            rows.append(
                [precision, f"[{low:g}, 1]", label, figure(max(errors)), figure(max(distances))]
            )
    return rows_of(
        ["format", "spectrum", "schedule", "worst error", "distance to the factor"], rows
    )


def narrow_table(n: int) -> str:
    """What 8 bits give: distance to the polar factor for lower ends and spectra."""
    rows = []
    for precision in ("float8_e4m3", "float8_e5m2"):
        for lower in (0.3, 0.1, 0.03, 0.01, 0.001):
            s = lowbits.for_precision(precision, lower)
            row = [precision, f"{lower:g}", str(len(s)), figure(s.error())]
            for low in (0.3, 0.1, 0.01):
                a = with_singular_values(np.geomspace(1, low, n), seed=1).astype(np.float32)
                q = result(a, s, precision, "none").astype(np.float64)
                u, _, v = scipy.linalg.svd(a.astype(np.float64))
                row.append(f"{np.linalg.norm(q - u @ v) / np.sqrt(n):.2f}")
            rows.append(row)
    header = ["format", "lower", "quintics", "error", "σ in [0.3, 1]", "[0.1, 1]", "[0.01, 1]"]
    return rows_of(header, rows)


def restart_table() -> str:
    """Where the Gram form restarts."""
    rows = []
    for precision in ("bfloat16", "float16"):
        for label, s in rivals(precision, 1e-3, 5).items():
            if s is not None:
                at = ", ".join(map(str, design.restarts(s, precision))) or "none"
                slopes = ", ".join(f"{step[0]:.2f}" for step in s.steps)
                rows.append([precision, label, slopes, at])
    return rows_of(["format", "schedule", "slopes", "restarts after"], rows)


def _ratio(step: Sequence[float], gain: float) -> float:
    z, slope = sum(step[1:]), step[1] + 2 * step[2]
    return (abs(step[0] + z) + abs(z) + abs(slope)) / gain


def first_step(precision: str, lower: float) -> dict[str, str]:
    """Room and cushion of the first step, read off the step itself."""
    unit = format_of(precision).unit_roundoff
    found = design.fingerprint(lowbits.for_precision(precision, lower, steps=5).steps[0])
    return {
        "room": f"{(found.upper / (1 + unit) - 1) / unit:.2f} u",
        "cushion": f"designed from {found.lower:.4f} on",
    }


def page(quick: bool, console: Console) -> str:
    """Fill the page's tables in."""
    sizes = (64, 128) if quick else (64, 128, 256, 512, 1024)
    phases = 100 if quick else 1000
    first = lowbits.table(lowbits.for_precision("bfloat16", 1e-3, steps=5))[0]
    step = lowbits.for_precision("bfloat16", 1e-3, steps=5).steps[0]
    tables = {
        **first_step("bfloat16", 1e-3),
        "phases": str(phases),
        "n_measured": "128" if quick else "256",
        "hostile": textwrap.fill(
            f"Largest singular value of the result, over {len(HOSTILE)} matrices "
            f"({', '.join(HOSTILE)}) with largest singular value 1, divided by the Frobenius norm, "
            "by the spectral bound, or by nothing (not at n = 1024); three seeds up to n = 256, "
            "then one. For the formats of 8 bits the designs and the recipe are for lower = 0.1.",
            100,
        ),
        "ratio": f"{_ratio(step, first['noise_gain']):.2f}",
        "errors": error_table(phases),
        "degrees": degrees_table(),
        "noise": noise_table(sizes[:2] if quick else sizes[:3]),
        "share": share_table(phases),
        "measured": measured_table(128 if quick else 256),
        "narrow": narrow_table(128),
        "restarts": restart_table(),
        "stress": stress_table(sizes, console),
    }
    return TEXT.format(**tables)


TEXT = """# Designing for a number format

Made by `python benchmarks/lowbits.py --markdown docs/guide/precision.md`; nothing in the tables is
typed by hand. u is the unit roundoff: 2⁻⁸ in bfloat16, 2⁻¹¹ in float16, 2⁻⁴ and 2⁻³ in the 8-bit
formats e4m3 and e5m2. Formats are simulated as hardware works: operands rounded, products
accumulated in single precision, one rounding of each result. Where they are native, and what
differs then: [methods.md](polar.md#number-formats).

`design.for_precision("bfloat16", 1e-3, steps=5)` is the best schedule for iterating in a format. It
needs no safety factor and no cushion from the user: both follow from a bound of the rounding.

## The bound

A quintic step c₀x + c₁x³ + c₂x⁵ rounds three matrices: G = XᵀX, Z = c₁G + c₂G², and c₀X + XZ. To
first order a singular value x becomes p(x) to within u r(x), with z(y) = c₁y + c₂y² and

    r(x) = |p(x)| + x |z(x²)| + x³ |z′(x²)|.

It is attained, nearly, where all entries of a matrix are rounded alike: constant matrices, Hadamard
matrices, 1 × 1 matrices. The input adds a factor 1 + u, by its own rounding, and 64 roundings of
single precision for the norm.

What the design maximises at every step is the quotient of the ends of the interval that singular
values can reach under this bound. Two numbers decide it: the room above the upper end, where the
first step has a slope of 25, so that a little room saves much; and the cushion below, which keeps
the minima of the polynomial, where large singular values end as small ones, out of the noise.

| | first step, l = 1e-3 | derived or chosen |
| --- | --- | --- |
| input margin | 1 + u | derived: one rounding |
| room above | {room} | derived: best quotient |
| cushion | {cushion} | derived: best quotient |
| share of the bound that is kept free upward | 0.75 | by experiment: see "share" below |
| rounding of the norm | 64 roundings of single precision | chosen generously |

The last step keeps no room, since nothing after it can diverge.

## Errors

Worst error on [1e-3, 1] after so many quintics: in exact arithmetic / in the format, on
matrices whose entries are rounded alike ({phases} of them, 2100 singular values each). *No
rounding* is the best that there is in exact arithmetic, which diverges in 16 bits. *Greedy,
recipe* is a greedy schedule with cushion 0.01 and safety 1 + 2u. The published lists are Polar
Express with safety 1.01 and its variants with 1.02 and 1.05.

{errors}

From seven quintics on the exact error is below u and says nothing any more: what is left is the
rounding of the last step, the same for all.

Measured on full matrices, n = {n_measured}, singular values log-uniform, three seeds: worst |1 − σ|
and distance ‖Q − UVᵀ‖_F / √n to the polar factor.

{measured}

Rounding of the input perturbs singular values by about u/√n times the largest, by up to u where
entries are rounded alike: directions of smaller ones are lost before the first step. Zero singular
values become noise of that size, which the slope of a schedule lifts: measured with four remedies
in [stress.md](../evidence/stress.md#zero-singular-values).

## No blow-up

{hostile}

{stress}

## Degrees

Best sequences for a number of products (`matmuls=`, `degrees=(3, 5)`), and their exact errors: by
the search of `design.budget`, which compares errors with a fifth of the bound of every rounding and
spends no products on less than 1/64 of one rounding.

{degrees}

Cubics come first, or at the end, where all is near 1 and they round less than quintics.

## What a single step's rounding measures

Error of a step on all spectra of `polarlib.testing`, spectral norm 1, in units of u times the noise
gain Σ|cᵢ| x^(2i+1) at the upper end x: this is the γ of the model "error = γ u Σ|cᵢ| x^(2i+1)". It
does not grow with n. The last column is how far singular values leave the exact image of the whole
interval, in the same units, negative numbers cut at 0; it adds up over the steps.

{noise}

For the first step at l = 1e-3 the bound's r(1) is {ratio} of the noise gain.

## The share of the bound

Designs of five quintics with less or more of the bound kept free upward, on 3 × {phases} matrices
whose entries are rounded alike. Such matrices come nearest to the bound, yet it takes chance
to leave: all three roundings must go outward, in every step. 0.75 is the smallest multiple of a
quarter at which none did in any format.

{share}

## Eight bits

Distance ‖Q − UVᵀ‖_F / √n to the polar factor, n = 128, of designs with as many quintics as reach an
error of u, on log-uniform spectra.

{narrow}

With lower = 0.1 singular values above 0.1 arrive; 0.01 is worth its two more quintics where the
spectrum is wide; 0.001 costs more and gives nothing. Each matrix of 8 bits carries a power of two
that brings its largest entry to between a quarter and six tenths of the largest number, as operands
of 8-bit products do: unscaled, e4m3 would lose all entries below 2⁻¹⁰, most of a normalised matrix
with 1000 rows and columns. Entries below 2⁻¹⁸ (e4m3) or 2⁻³² (e5m2) times the largest are lost.

## Gram form

Where `design.restarts` has the Gram form start again: as the rounding of R and Q demands, and the
room that a schedule leaves for it ([gram_form.md](gram.md)).

{restarts}
"""


def main(
    markdown: Annotated[Path | None, typer.Option(help="Write the page.")] = None,
    quick: Annotated[bool, typer.Option(help="Small matrices, few phases.")] = False,
) -> None:
    """Measure, and print the page or write it."""
    console = Console()
    text = page(quick, console)
    if markdown is None:
        console.print(text, markup=False)
    else:
        write_whole(markdown, lambda f: f.write(text.encode()))


if __name__ == "__main__":
    typer.run(main)
