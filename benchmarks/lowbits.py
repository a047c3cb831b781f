"""Evidence for polarlib.design.for_precision: effect of rounding, and safety of the designs.

    python benchmarks/lowbits.py --json docs/data/lowbits.json     # measure: four minutes
    python benchmarks/lowbits.py --markdown docs/evidence/precision.md   # the page from that file

Number formats are simulated on NumPy: operands rounded as on hardware, products accumulated in
single precision, one rounding of each result. Nothing is timed. The page is made by lowbits_page.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import typer
from common import load, text_of
from lowbits_page import page
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

# Number formats with the lower ends that are used in them.
LOWER = {"bfloat16": 1e-3, "float16": 1e-3, "float8_e4m3": 1e-1, "float8_e5m2": 1e-1}
DATA = Path(__file__).resolve().parent.parent / "docs" / "data" / "lowbits.json"
PUBLISHED = ("polar_express", "polar_express_102", "polar_express_105")


def hostile(name: str, n: int, seed: int) -> np.ndarray:
    """Return one hostile matrix with largest singular value 1."""
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
    """Return one orthogonalisation, without warnings about the schedule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return polarlib.orthogonalize(
            a, schedule=schedule, precision=precision, form="plain", normalisation=normalisation
        )


def largest(q: np.ndarray) -> float:
    """Return the largest singular value, infinity for a matrix that is not finite."""
    if not np.all(np.isfinite(q)):
        return np.inf
    wide = q.astype(np.float64)
    return float(np.sqrt(scipy.linalg.eigvalsh(wide.T @ wide)[-1]))


# -- chains of scalars that are rounded alike ------------------------------------------------------


def _rounded(x: np.ndarray, bits: int) -> np.ndarray:
    m, e = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(m, bits)), e - bits)


def chain_inputs(unit: float) -> np.ndarray:
    """Return singular values from 1e-4 to 1, dense below 1."""
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

    A constant matrix of singular value x has entries x / n. Its shape determines where in its
    binade an entry of X or of the Gram matrix lies, so both phases are random. Degrees up to 9; the
    same matrices are rounded as in the engine.

    Returns
    -------
    ndarray, shape (phases, inputs)
        Singular values of the result; truncated at 1e30.
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
    """Return the largest |1 - x|, and x, of the chains from the schedule's interval."""
    bits = format_of(precision).significand
    inside = chain_inputs(2.0**-bits) >= 1.01 * schedule.lower
    divided = [[c / schedule.input_safety ** (2 * i + 1) for i, c in enumerate(schedule.steps[0])]]
    x = chain([*divided, *schedule.steps[1:]], bits, phases)[:, inside]
    return float(np.abs(1 - x).max()), float(x.max())


def escapes(share: float, precision: str, phases: int) -> tuple[float, float, float, float]:
    """Return error, chain error, largest and fraction above 1.3, for another share of the bound."""
    before, rounding.UPWARD = rounding.UPWARD, share
    try:
        s = lowbits.for_precision(precision, LOWER[precision], steps=5)
    finally:
        rounding.UPWARD = before
    bits = format_of(precision).significand
    inside = chain_inputs(2.0**-bits) >= 1.01 * s.lower
    x = np.concatenate([chain(s.steps, bits, phases, seed)[:, inside] for seed in range(3)])
    return s.error(), float(np.abs(1 - x).max()), float(x.max()), float(np.mean(x > 1.3))


# -- measurements ----------------------------------------------------------------------------------

Record = dict[str, Any]


def digits(x: float) -> float | None:
    """Round to four digits for the file; None for NaN, infinity or a result above 1e4."""
    return float(f"{x:.4g}") if math.isfinite(x) and x < 1e4 else None


def published(name: str, steps: int) -> polarlib.Schedule | None:
    """Return the first steps of a published set, or None if the set has fewer."""
    try:
        return polarlib.schedule(name, steps=steps)
    except ValueError:
        return None


def recipe(precision: str, lower: float, steps: int) -> polarlib.Schedule:
    """Design greedily with cushion 0.01 and safety 1 + 2 u: the usual recipe without a model."""
    unit = format_of(precision).unit_roundoff
    return design.greedy(lower, [5] * steps, safety=min(2 * unit, 0.3), cushion=0.01)


@functools.cache
def compared(precision: str, lower: float, steps: int) -> dict[str, polarlib.Schedule | None]:
    """Return the schedules that are compared, by label."""
    return {
        "for_precision": lowbits.for_precision(precision, lower, steps=steps),
        "greedy, recipe": recipe(precision, lower, steps),
        **{name: published(name, steps) for name in PUBLISHED},
    }


def degrees_of(s: polarlib.Schedule) -> list[int]:
    """Return the degrees of the steps."""
    return [2 * len(c) - 1 for c in s.steps]


def error_rows(phases: int) -> list[Record]:
    """Measure the worst scalar error, exactly and with all entries rounded alike."""
    rows = []
    for precision in ("bfloat16", "float16"):
        for k in (4, 5, 6, 7, 8, 9):
            errors = {
                label: [digits(s.error()), digits(chain_error(s, precision, phases)[0])]
                for label, s in compared(precision, 1e-3, k).items()
                if s is not None
            }
            exact = digits(design.greedy(1e-3, [5] * k).error())
            rows.append({"format": precision, "steps": k, "no rounding": exact, "errors": errors})
    return rows


def degree_rows() -> list[Record]:
    """Find the best degrees for a number of products."""
    rows = []
    for m in range(12, 22):
        for precision, lower in LOWER.items():
            s = lowbits.for_precision(precision, lower, matmuls=m, degrees=(3, 5))
            found = {"degrees": degrees_of(s), "error": digits(s.error())}
            rows.append({"format": precision, "lower": lower, "products": m, **found})
    return rows


def step_rows(sizes: Sequence[int]) -> list[Record]:
    """Measure the error of single steps, in units of u times the error amplification."""
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
                    above = described[k]["image_upper"]
                    outward[k] = max(outward[k], (largest(y) - above) / unit)
                    x = y
            found = {"error": error, "outward": outward}
            rounded_to = {key: [float(f"{e:.2f}") for e in v] for key, v in found.items()}
            rows.append({"format": precision, "n": n, **rounded_to})
    return rows


def share_rows(phases: int) -> list[Record]:
    """Design with smaller and larger shares of the bound, and measure on rounded chains."""
    rows = []
    for precision in LOWER:
        for share in (0.25, 0.5, 0.6, 0.65, 0.7, 0.75, 1.0):
            error, noisy, top, lost = escapes(share, precision, phases)
            found = {"error": error, "rounded alike": noisy, "largest": top, "above 1.3": lost}
            found = {key: digits(value) for key, value in found.items()}
            rows.append({"format": precision, "share": share, **found})
    return rows


def largest_rows(sizes: Sequence[int], console: Console) -> list[Record]:
    """Measure the largest singular value over hostile matrices, in three normalisations."""
    worst: dict[tuple[str, int, str], dict[int, tuple[float, str]]] = {}
    for n in sizes:
        for seed in range(3 if n <= 256 else 1):
            for name in HOSTILE:
                a = hostile(name, n, seed)
                kinds = ("frobenius", "spectral", "none") if n <= 512 else ("frobenius", "spectral")
                for precision, lower in LOWER.items():
                    for k in (5, 9):
                        for label, s in compared(precision, lower, k).items():
                            if s is None or (n > 128 and label != "for_precision"):
                                continue
                            found = max(
                                (largest(result(a, s, precision, kind)), f"{name}, {kind}")
                                for kind in kinds
                            )
                            key = precision, k, label
                            before = worst.setdefault(key, {}).get(n, (0.0, ""))
                            worst[key][n] = max(before, found)
        console.print(f"n = {n} done")
    rows = []
    for precision, k, label in sorted(worst, key=lambda key: (list(LOWER).index(key[0]), key[1])):
        found = worst[precision, k, label]
        tops = {str(n): digits(top) for n, (top, _) in found.items()}
        row = {"format": precision, "steps": k, "schedule": label}
        rows.append({**row, "largest": tops, "worst at": max(found.values())[1]})
    return rows


def measured_rows(n: int) -> list[Record]:
    """Measure the worst |1 - sigma| and the distance to the polar factor, log-uniform spectra."""
    rows = []
    for precision, low in (("bfloat16", 1e-2), ("float16", 1e-3), ("float16", 1e-2)):
        for label, s in compared(precision, 1e-3, 5).items():
            if s is None:
                continue
            errors, distances = [], []
            for seed in range(3):
                sigma = np.geomspace(1, low, n)
                a = with_singular_values(sigma, seed=seed).astype(np.float32)
                q = result(a, s, precision, "none").astype(np.float64)
                u, _, v = scipy.linalg.svd(a.astype(np.float64))
                errors.append(float(np.abs(1 - scipy.linalg.svdvals(q)).max()))
                distances.append(float(np.linalg.norm(q - u @ v) / np.sqrt(n)))
            found = {"error": digits(max(errors)), "distance": digits(max(distances))}
            rows.append({"format": precision, "lowest": low, "schedule": label, **found})
    return rows


def narrow_rows(n: int) -> list[Record]:
    """Measure the distance to the polar factor in 8 bits, by lower end and spectrum."""
    rows = []
    for precision in ("float8_e4m3", "float8_e5m2"):
        for lower in (0.3, 0.1, 0.03, 0.01, 0.001):
            s = lowbits.for_precision(precision, lower)
            away = {}
            for low in (0.3, 0.1, 0.01):
                a = with_singular_values(np.geomspace(1, low, n), seed=1).astype(np.float32)
                q = result(a, s, precision, "none").astype(np.float64)
                u, _, v = scipy.linalg.svd(a.astype(np.float64))
                away[f"{low:g}"] = digits(float(np.linalg.norm(q - u @ v) / np.sqrt(n)))
            found = {"steps": len(s), "error": digits(s.error()), "distance": away}
            rows.append({"format": precision, "lower": lower, **found})
    return rows


def restart_rows() -> list[Record]:
    """Find where the Gram form restarts."""
    return [
        {
            "format": precision,
            "schedule": label,
            "slopes": [float(f"{step[0]:.2f}") for step in s.steps],
            "restarts": list(design.restarts(s, precision)),
        }
        for precision in ("bfloat16", "float16")
        for label, s in compared(precision, 1e-3, 5).items()
        if s is not None
    ]


def _ratio(step: Sequence[float], gain: float) -> float:
    z, slope = sum(step[1:]), step[1] + 2 * step[2]
    return (abs(step[0] + z) + abs(z) + abs(slope)) / gain


def first_step(precision: str, lower: float) -> Record:
    """Return the upper margin and the cushion of the first step, found from the step itself."""
    unit = format_of(precision).unit_roundoff
    s = lowbits.for_precision(precision, lower, steps=5)
    found = design.fingerprint(s.steps[0])
    return {
        "margin": float(f"{(found.upper / (1 + unit) - 1) / unit:.2f}"),
        "designed from": float(f"{found.lower:.4f}"),
        "bound over amplification": float(
            f"{_ratio(s.steps[0], lowbits.table(s)[0]['noise_gain']):.2f}"
        ),
    }


def measure(quick: bool, console: Console) -> Record:
    """Measure everything that the page shows."""
    sizes = (64, 128) if quick else (64, 128, 256, 512, 1024)
    phases, n = (100, 128) if quick else (1000, 256)
    return {
        "phases": phases,
        "n": n,
        "hostile": list(HOSTILE),
        "first step": first_step("bfloat16", 1e-3),
        "errors": error_rows(phases),
        "measured": measured_rows(n),
        "largest": largest_rows(sizes, console),
        "degrees": degree_rows(),
        "single steps": step_rows(sizes[:2] if quick else sizes[:3]),
        "shares": share_rows(phases),
        "eight bits": narrow_rows(128),
        "restarts": restart_rows(),
    }


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Measure, write here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the page from the data.")] = None,
    quick: Annotated[bool, typer.Option(help="Measure on small matrices, few phases.")] = False,
) -> None:
    """Measure into a file, or write the page from the file that is kept."""
    console = Console()
    data = load(DATA) if json_file is None else measure(quick, console)
    if json_file is not None:
        text = text_of(data).encode()
        write_whole(json_file, lambda f: f.write(text))
    if markdown is not None:
        write_whole(markdown, lambda f: f.write(page(data).encode()))


if __name__ == "__main__":
    typer.run(main)
