"""Accuracy in low precision: our schedule against the published ones at equal matrix products.

    python benchmarks/stress.py [--markdown docs/evidence/stress.md] [--json FILE]
                                   [--peers FOLDER] [--quick]
    python benchmarks/stress.py --range --markdown docs/evidence/stress.md  # section "Range" alone
    python benchmarks/stress.py --sets --markdown docs/evidence/stress.md   # published sets alone

Number formats are simulated on NumPy as hardware works: operands rounded, products accumulated in
single precision, one rounding of each result. What is compared with other packages' own code runs
in torch. Nothing is timed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import peers as other
import scipy.linalg
import typer
from common import replace_part
from rich.console import Console

import polarlib
from polarlib.arrays.formats import FORMATS as ALL_FORMATS
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to, rounded
from polarlib.engine.iterate import iterate
from polarlib.files import sample_matrices
from polarlib.files.whole import write_whole
from polarlib.testing import SPECTRA, orthonormal, spectrum, with_singular_values

METRICS = ("orthogonality", "backward error", "negative part", "dual gap", "bound violation")
FORMATS = ("bfloat16", "float16", "float32")
FIELD, ADVERSARIAL = SPECTRA[:11], SPECTRA[11:]
# Published sets that are compared with, each at its own number of products.
SETS = (
    *("polar_express", "polar_express_102", "polar_express_105", "you", "cans", "turbo_muon"),
    *("jordan", "aol_nv", "cubic5", "newton_schulz_5", "deepseek_v4", "you_6", "modula"),
    *("simple_quintic", "ns8", "root_2048x2048", "root_2048x3072", "root_2048x8192"),
    *("root_2048x16384", "gefen_3", "gefen_4", "cesista", "polar_express_nv"),
    *("polar_express_1e4", "turbo_muon_full"),
)
# Those for other functions, each with the functions of design that make the like: names of the rows
# beside it, and the schedules.
OTHER_SETS: dict[str, dict[str, Callable[[], polarlib.Schedule]]] = {
    "inverse_sqrt_nv": {
        "`design.inverse_root(2, 1e-3, [3] * 10)`": lambda: polarlib.design.inverse_root(
            2, 1e-3, [3] * 10
        ),
        "`design.inverse_root(2, 1e-3, [5] * 7)`": lambda: polarlib.design.inverse_root(
            2, 1e-3, [5] * 7
        ),
    },
    "lipschitz_cap": {"`design.clip(3.4, [5] * 4)`": lambda: polarlib.design.clip(3.4, [5] * 4)},
}
LOWER = 1e-3  # what Polar Express and its kin are made for
DIVERGED = 10.0  # a singular value above this is no approximation of 1 any more
SAFE = 1.3  # what the largest singular value of ours must stay below
FORMS = ("plain", "gram", "auto")


# -- what is compared ------------------------------------------------------------------------


@functools.cache
def our_schedule(precision: str, products: int) -> polarlib.Schedule:
    """Our schedule of so many matrix products: quintics where they come out even."""
    steps, rest = divmod(products, 3)
    if rest:
        return polarlib.default_schedule(precision, matmuls=products)
    return polarlib.default_schedule(precision, steps=steps)


def ours(precision: str, products: int) -> dict[str, Any]:
    """Arguments of orthogonalize() that we recommend for a format and a number of products."""
    return {"schedule": our_schedule(precision, products)}


def factor(a: np.ndarray, precision: str, **options: Any) -> np.ndarray:
    """One orthogonalisation in double precision, of schedules that are warned of too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        q = polarlib.orthogonalize(a, precision=precision, **options)
    return q.astype(np.float64)


class Case(NamedTuple):
    """A matrix of the test, as rounded to a format."""

    spectrum: str
    shape: str
    matrix: np.ndarray
    nuclear: float


def case(name: str, a: np.ndarray, precision: str) -> Case:
    """A matrix as its format has it."""
    single = a.astype(np.float32)
    if precision != "float32":
        single = round_to(single, format_of(precision), ops_of(single))
    nuclear = float(np.sum(scipy.linalg.svdvals(single.astype(np.float64))))
    return Case(name, f"{a.shape[0]} x {a.shape[1]}", single, nuclear)


def stress_cases(
    names: Iterable[str], precision: str, n: int, aspects: Sequence[int], seeds: int
) -> list[Case]:
    """Matrices of given spectra: shapes n x n, 4n x n, ..., several draws of singular vectors."""
    return [
        case(name, with_singular_values(spectrum(name, n), aspect * n, seed=seed), precision)
        for name in names
        for aspect in aspects
        for seed in range(seeds)
    ]


def gradient_cases(precision: str, limit: int) -> list[Case]:
    """The gradients that the package ships, as many as wanted."""
    return [case(name, a, precision) for name, a in list(sample_matrices().items())[:limit]]


def metrics(case: Case, q: np.ndarray) -> np.ndarray:
    """The five figures of a factor, in double precision; infinite if it is not finite."""
    a = case.matrix.astype(np.float64)
    if a.shape[0] < a.shape[1]:
        a, q = a.T, q.T
    if not np.all(np.isfinite(q)) or np.abs(q).max() > 1e100:
        return np.full(len(METRICS), math.inf)
    gram, h, size = q.T @ q, q.T @ a, np.linalg.norm(a)
    h = (h + h.T) / 2
    values = scipy.linalg.eigvalsh(h)
    largest = math.sqrt(max(scipy.linalg.eigvalsh(gram)[-1], 0.0))
    return np.array(
        [
            np.linalg.norm(gram - np.eye(a.shape[1])) / math.sqrt(a.shape[1]),
            np.linalg.norm(a - q @ h) / size,
            np.linalg.norm(values[values < 0]) / size,
            abs(1 - np.sum(a * q) / case.nuclear),
            max(largest - 1, 0.0),
        ]
    )


def measure(cases: Sequence[Case], precision: str, **options: Any) -> np.ndarray:
    """Figures of all cases, shape (cases, 5)."""
    return np.array(
        [metrics(c, factor(c.matrix, precision, form="plain", **options)) for c in cases]
    )


def scalar_error(s: polarlib.Schedule) -> float:
    """Worst |1 - s(x)| on [1e-3, 1], the division of the input by the safety counted."""
    low, high = s.image(LOWER, 1.0)
    return max(1 - low, high - 1)


def compare(cases: Sequence[Case], precision: str, console: Console | None = None) -> list[dict]:
    """Every published set beside ours at the same number of products, on the same matrices."""
    rows = []
    own: dict[int, np.ndarray] = {}
    for name in SETS:
        s = polarlib.schedule(name)
        if s.matmuls not in own:
            own[s.matmuls] = measure(cases, precision, **ours(precision, s.matmuls))
        figures = measure(cases, precision, schedule=s)
        row = {"name": name, "products": s.matmuls, "format": precision, "theirs": figures}
        row["ours"] = own[s.matmuls]
        row["scalar"] = scalar_error(s), scalar_error(our_schedule(precision, s.matmuls))
        row["spectra"] = [c.spectrum for c in cases]
        rows.append(row)
        if console is not None:
            console.print(f"{precision}, {name}: {len(cases)} matrices")
    return rows


# -- sets for other functions ----------------------------------------------------------------

OTHER_MATRICES = "three 96 x 96 matrices, values from geometric to uniform in the interval"


def other_rows() -> list[dict]:
    """Published sets for other functions, and what the library designs for the same interval."""
    rows = []
    for name, designs in OTHER_SETS.items():
        theirs = polarlib.schedule(name)
        own = {label: make() for label, make in designs.items()}
        for label, s in {f"`{name}`": theirs, **own}.items():
            root = theirs.target == "polar"
            rows.append(
                {
                    "name": label,
                    "function": "A^(-1/2)" if root else "min(σ, 1)",
                    "interval": f"[{theirs.lower:g}, {theirs.upper:g}]",
                    "products": coupled_products(s) if root else s.matmuls,
                    "errors": (s.error(theirs.lower or None), on_matrices(s, theirs.lower, root)),
                }
            )
    return rows


def coupled_products(s: polarlib.Schedule) -> int:
    """Products of the coupled iteration for inverse square roots.

    Per step those of the polynomial, one for Q and two for R; Q = I costs none in the first step,
    and R is not needed after the last one.
    """
    return s.matmuls - 2 * len(s) + 3 * len(s) - 3


def on_matrices(s: polarlib.Schedule, lower: float, root: bool) -> float:
    """Largest relative error of a matrix function, in double precision."""
    worst, n = 0.0, 96
    # The bound of the spectral norm that inverse_root divides by exceeds it by up to n^(1/16).
    ends = (1.2 * lower or 1e-3, s.upper)
    geometric, uniform = np.geomspace(*ends, n), np.linspace(*ends, n)
    for seed, x in enumerate((geometric, np.sqrt(geometric * uniform), uniform)):
        q = orthonormal(n, n, seed=seed)
        if root:
            exact = (q / x) @ q.T
            found = polarlib.inverse_root((q * x**2) @ q.T, 2, schedule=s)
        else:
            v = orthonormal(n, n, seed=seed + 10)
            exact = (q * np.minimum(x, 1)) @ v.T
            found = polarlib.orthogonalize((q * x) @ v.T, schedule=s)
        away = np.linalg.norm(found - exact, 2) / np.linalg.norm(exact, 2)
        worst = max(worst, float(away))
    return worst


# -- zero singular values --------------------------------------------------------------------


def deficient(n: int) -> dict[str, np.ndarray]:
    """Singular values other than zero of three matrices of deficient rank."""
    return {
        "rank one": np.ones(1),
        "rank ten, 1 to 0.1": np.geomspace(1, 0.1, 10),
        "half of them, 1 to 0.01": np.geomspace(1, 0.01, n // 2),
    }


def zero_rows(n: int, aspects: Sequence[int]) -> list[dict]:
    """Distance to the partial isometry of the matrix as it was before it was rounded."""
    return [zero_row(name, s, n, k * n) for name, s in deficient(n).items() for k in aspects]


def zero_row(name: str, s: np.ndarray, n: int, m: int) -> dict:
    """The default, the nearest published set, and what else may be done, for one matrix."""
    rank = len(s)
    a = with_singular_values(np.append(s, np.zeros(n - rank)), m).astype(np.float32)
    u, _, vh = scipy.linalg.svd(a.astype(np.float64), full_matrices=False)
    exact = u[:, :rank] @ vh[:rank]
    b = case(name, a, "bfloat16").matrix
    values = scipy.linalg.svdvals(b.astype(np.float64))

    def away(q: np.ndarray) -> float:
        return float(np.linalg.norm(q - exact)) / math.sqrt(rank)

    sets = [t for t in SETS if polarlib.schedule(t).matmuls <= 15]
    published = {t: away(factor(b, "bfloat16", schedule=polarlib.schedule(t))) for t in sets}
    best = min(published, key=lambda t: published[t])
    design = polarlib.design.for_precision(
        "bfloat16", min(s[-1] / s[0], 0.1), matmuls=15, degrees=(3, 5)
    )
    left, _, right = polarlib.top_singular(b, rank)
    return {
        "name": name, "shape": f"{m} x {n}", "noise": float(values[rank] / values[0]),
        "best": best, "products": design.matmuls,
        "distances": {
            "default": away(factor(b, "bfloat16")),
            "published": published[best],
            "float16": away(factor(a, "float16")),
            "float32": away(factor(a, "float32")),
            "design": away(factor(b, "bfloat16", schedule=design, normalisation="moments")),
            "truncated": away(left @ right),
        },
    }  # fmt: skip


# -- nearness to 1 and reach ------------------------------------------------------------------

# Sets whose backward error is less than the default's somewhere, at products that are compared.
GENTLE = ("gefen_4", "modula", "cesista", "you_6")


def gentle_rows(n: int, aspects: Sequence[int]) -> list[dict]:
    """Such sets, the default schedule, and designs for [1e-2, 1], all of as many products."""
    rows = []
    for precision in ("bfloat16", "float32"):
        cases = stress_cases(FIELD, precision, n, aspects, 1)
        for name in GENTLE:
            theirs = polarlib.schedule(name)
            design = polarlib.design.for_precision(
                precision, 1e-2, matmuls=theirs.matmuls, degrees=(3, 5)
            )
            every = {
                f"`{name}`": {"schedule": theirs},
                "default": ours(precision, theirs.matmuls),
                "for [1e-2, 1]": {"schedule": design, "normalisation": "moments"},
            }
            for label, options in every.items():
                mean = measure(cases, precision, **options).mean(axis=0)
                row = {"name": label, "format": precision, "products": theirs.matmuls}
                slope = options["schedule"].slope
                rows.append(row | {"slope": slope, "figures": mean})
    return rows


# -- counting --------------------------------------------------------------------------------


def by_spectrum(figures: np.ndarray, spectra: Sequence[str]) -> np.ndarray:
    """Mean of each spectrum over shapes and draws, shape (spectra, 5)."""
    names = list(dict.fromkeys(spectra))
    at = np.array([names.index(s) for s in spectra])
    return np.array([figures[at == k].mean(axis=0) for k in range(len(names))])


def outcome(theirs: np.ndarray, our: np.ndarray, precision: str) -> np.ndarray:
    """+1 where ours is better, -1 where theirs is; 0 within one unit roundoff of the format."""
    tie = format_of(precision).unit_roundoff
    with np.errstate(invalid="ignore"):
        difference = np.where(np.isinf(theirs) & np.isinf(our), 0.0, theirs - our)
    return np.where(np.abs(difference) <= tie, 0, np.sign(difference)).astype(int)


def diverged(figures: np.ndarray) -> int:
    """How many results are no approximation, or not finite."""
    return int(np.sum(~(figures[:, -1] < DIVERGED - 1)))


def counts(row: dict) -> np.ndarray:
    """Spectra on which ours is better, ties, and those on which theirs is: shape (3, 5)."""
    theirs, our = (by_spectrum(row[who], row["spectra"]) for who in ("theirs", "ours"))
    found = outcome(theirs, our, row["format"])
    return np.array([(found == k).sum(axis=0) for k in (1, 0, -1)])


def verdict(row: dict) -> str:
    """One line: where ours is better in the mean, where it is a tie, where theirs is better."""
    found = outcome(row["theirs"].mean(axis=0), row["ours"].mean(axis=0), row["format"])
    words = {1: "ours better", 0: "tie", -1: "THEIRS BETTER"}
    parts = [
        f"{word}: {', '.join(m for m, f in zip(METRICS, found, strict=True) if f == k)}"
        for k, word in words.items()
        if k in found
    ]
    lost = diverged(row["theirs"])
    note = f"; theirs diverges on {lost} of {len(row['theirs'])}" if lost else ""
    return f"`{row['name']}`, {row['format']}: {'; '.join(parts)}{note}."


# -- safety ----------------------------------------------------------------------------------


def hostile(n: int, aspects: Sequence[int], precision: str) -> list[Case]:
    """Adversarial spectra, constant matrices and Hadamard ones (n a power of two)."""
    cases = stress_cases(ADVERSARIAL, precision, n, aspects, 1)
    for aspect in aspects:
        m = aspect * n
        cases.append(case("constant", np.full((m, n), 1.0), precision))
        cases.append(case("Hadamard", scipy.linalg.hadamard(m)[:, :n], precision))
    return cases


def steps_of(name: str, steps: int) -> polarlib.Schedule | None:
    """A published set of so many steps, or all that it has of five; None if it has fewer."""
    try:
        return polarlib.schedule(name, steps=steps)
    except ValueError:
        s = polarlib.schedule(name)
        return s if steps == 5 and len(s) < steps else None


def surviving(precision: str) -> list[str]:
    """Published sets that one rounding of the format cannot push past divergence."""
    names = [name for name in polarlib.schedules() if name not in OTHER_SETS]
    return [name for name in names if polarlib.schedule(name).is_safe_in(precision)]


class Safety(NamedTuple):
    """What can go wrong with one schedule in one form, at its worst."""

    largest: float
    lost: int
    smallest: float
    where: str


def safety(cases: Sequence[Case], precision: str, form: str, options: dict[str, Any]) -> Safety:
    """Largest singular value, results that are not finite, least <A, Q> / ||A||_*."""
    worst, where, lost, least = 0.0, "", 0, math.inf
    for c in cases:
        q = factor(c.matrix, precision, form=form, **options)
        if not np.all(np.isfinite(q)):
            lost += 1
            worst, where = math.inf, f"{c.spectrum}, {c.shape}"
            continue
        largest = math.sqrt(scipy.linalg.eigvalsh(q.T @ q)[-1])
        if largest > worst:
            worst, where = largest, f"{c.spectrum}, {c.shape}"
        least = min(least, float(np.sum(c.matrix * q)) / c.nuclear)
    return Safety(worst, lost, least, where)


def our_steps(precision: str, steps: int) -> dict[str, Any]:
    """Our schedule of so many quintics."""
    return ours(precision, 3 * steps)


def safety_rows(sizes: Sequence[int], console: Console | None = None) -> list[dict]:
    """Every set that survives, and ours, in every form."""
    rows = []
    for precision in ("bfloat16", "float16"):
        cases = [c for n in sizes for c in hostile(n, (1, 4, 8), precision)]
        for name in ("ours", *surviving(precision)):
            found: dict[str, Safety | None] = {}
            for k in (5, 9):
                if name == "ours":
                    options: dict[str, Any] | None = our_steps(precision, k)
                else:
                    s = steps_of(name, k)
                    options = None if s is None else {"schedule": s}
                for form in FORMS:
                    key = f"{form}, {k}"
                    found[key] = (
                        None if options is None else safety(cases, precision, form, options)
                    )
            rows.append({"name": name, "format": precision, "cases": len(cases), "found": found})
            if console is not None:
                console.print(f"safety, {precision}, {name}")
    return rows


# -- range -----------------------------------------------------------------------------------

NORMALISATIONS = ("moments", "schatten4", "frobenius", "spectral", "none")
NARROW = ("bfloat16", "float16", "float8_e4m3", "float8_e5m2")
# Shapes, formats, normalisations and forms; the largest matrices only where most is lost.
Job = tuple[tuple[int, int], Sequence[str], Sequence[str], Sequence[str]]
RANGE_JOBS: tuple[Job, ...] = (
    *(
        (shape, tuple(ALL_FORMATS), NORMALISATIONS, ("plain", "gram"))
        for shape in ((128, 128), (1024, 128), (128, 1024))
    ),
    *(
        (shape, NARROW, NORMALISATIONS, ("plain", "gram"))
        for shape in ((512, 512), (2048, 256), (256, 2048))
    ),
    ((2048, 2048), NARROW[1:], ("moments",), ("plain",)),
)
QUICK_RANGE_JOBS: tuple[Job, ...] = (
    ((128, 128), NARROW[2:], ("moments", "frobenius"), ("plain",)),
    ((16, 256), tuple(ALL_FORMATS), NORMALISATIONS, ("plain", "gram")),
    ((256, 16), NARROW, NORMALISATIONS, ("plain", "gram")),
)


class Ranged(NamedTuple):
    """A matrix whose entries tax the range of a format, its nuclear norm, and its factor."""

    name: str
    matrix: np.ndarray
    nuclear: float
    factor: np.ndarray | None


def ranged(shape: tuple[int, int]) -> list[Ranged]:
    """Six matrices of ordinary kinds; the factor of the one that is well conditioned."""
    m, n = max(shape), min(shape)
    rng = np.random.default_rng(n)
    u, v = orthonormal(m, n, seed=1), orthonormal(n, n, seed=2).T
    one = np.outer(rng.standard_normal(m), rng.standard_normal(n))
    dense = {
        "Gaussian": rng.standard_normal((m, n)),
        "entries ±1": rng.choice([-1.0, 1.0], (m, n)),
        "uniform on [0, 1]": rng.random((m, n)),
    }
    cases = [Ranged(k, a, float(scipy.linalg.svdvals(a).sum()), None) for k, a in dense.items()]
    cases.append(Ranged("rank one", one, float(np.linalg.norm(one)), None))
    for name, s in (
        ("κ = 2", np.linspace(1, 0.5, n)),
        ("one dominant value", np.where(np.arange(n), 0.01, 1.0)),
    ):
        cases.append(Ranged(name, (u * s) @ v, float(s.sum()), u @ v if s[-1] == 0.5 else None))
    if shape[0] >= shape[1]:
        return cases
    return [c._replace(matrix=c.matrix.T, factor=_transposed(c.factor)) for c in cases]


def _transposed(a: np.ndarray | None) -> np.ndarray | None:
    return None if a is None else a.T


class Range(NamedTuple):
    """One result of the default schedule."""

    format: str
    normalisation: str
    form: str
    where: str
    largest: float
    aligned: float
    distance: float | None


def range_results(jobs: Sequence[Job], console: Console | None = None) -> Iterator[Range]:
    """The default schedule in every format, normalisation and form of the jobs."""
    for shape, formats, kinds, forms in jobs:
        for c in ranged(shape):
            single = c.matrix.astype(np.float32)
            unit = (c.matrix / np.linalg.norm(c.matrix, 2)).astype(np.float32)
            for precision in formats:
                for kind in kinds:
                    for form in forms:
                        a = unit if kind == "none" else single
                        q = factor(a, precision, normalisation=kind, form=form)
                        yield _range(c, q, precision, kind, form)
        if console is not None:
            console.print(f"range, {shape[0]} x {shape[1]}")


def _range(c: Ranged, q: np.ndarray, precision: str, kind: str, form: str) -> Range:
    where = f"{c.name}, {c.matrix.shape[0]} x {c.matrix.shape[1]}"
    if not np.all(np.isfinite(q)):
        return Range(precision, kind, form, where, math.inf, -math.inf, None)
    gram, n = (q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T), min(q.shape)
    top = scipy.linalg.eigvalsh(gram, subset_by_index=[n - 1, n - 1])[0]
    away = None if c.factor is None else float(np.linalg.norm(q - c.factor)) / math.sqrt(n)
    aligned = float(np.sum(c.matrix * q)) / c.nuclear
    return Range(precision, kind, form, where, math.sqrt(max(top, 0.0)), aligned, away)


def range_table(results: Sequence[Range]) -> str:
    """The worst of each format and normalisation."""
    lines = []
    for precision in ALL_FORMATS:
        for kind in NORMALISATIONS:
            own = [r for r in results if (r.format, r.normalisation) == (precision, kind)]
            if not own:
                continue
            worst = max(own, key=lambda r: r.largest)
            tops = [
                max((r.largest for r in own if r.form == form), default=math.nan)
                for form in ("plain", "gram")
            ]
            away = max((r.distance for r in own if r.distance is not None), default=math.inf)
            lines.append(
                [precision, kind, str(len(own)), str(sum(math.isinf(r.largest) for r in own)),
                 *(f"{t:.3f}" for t in tops), worst.where, f"{min(r.aligned for r in own):.3f}",
                 f"{away:.3f}"]
            )  # fmt: skip
    header = ["format", "normalisation", "results", "not finite", "largest, plain", "gram"]
    return table([*header, "worst at", "least ⟨A, Q⟩ / ‖A‖_*", "κ = 2: ‖Q − U‖_F / √n"], lines)


RANGE_TEXT = """Largest singular value of the result of the default schedule, five steps, in
every format and normalisation (*none*: the matrix was divided by its spectral norm before), of
matrices with Gaussian entries, entries ±1, entries uniform on [0, 1], of rank one, with singular
values from 1 to 0.5, and with one singular value of 1 and all others 0.01. All formats on
{all}; the narrow ones on
{narrow}
too (bfloat16 not on the largest square, which is taken in plain form and the schedule's own
normalisation). Matrices of 8 bits carry one power of two each, as operands of 8-bit products do on
hardware; products accumulate, and norms are taken, in single precision. The last column is the
distance to the polar factor of the matrix with singular values from 1 to 0.5.

{table}

{count} results, of which {lost} are not finite; the largest singular value is {top:.2f} in 8 bits
and {sixteen:.3f} in 16 bits and more."""


def range_part(results: Sequence[Range], jobs: Sequence[Job]) -> str:
    """The section of the page."""

    def shapes(wide: bool) -> str:
        found = [s for s, f, *_ in jobs if (len(f) == len(ALL_FORMATS)) == wide]
        return ", ".join(f"{m} x {n}" for m, n in dict.fromkeys(found))

    def largest(bits8: bool) -> float:
        own = (r.largest for r in results if r.format.startswith("float8") == bits8)
        return max(own, default=math.nan)

    return RANGE_TEXT.format(
        all=shapes(True), narrow=shapes(False), table=range_table(results), count=len(results),
        lost=sum(math.isinf(r.largest) for r in results), top=largest(True),
        sixteen=largest(False),
    )  # fmt: skip


# -- scale -----------------------------------------------------------------------------------


def scale_range(precision: str) -> tuple[int, int]:
    """Powers of two by which matrices of entries 1, 1.25, 1.5, 1.75 stay exact in a format."""
    form = format_of(precision)
    least = round(math.log2(form.smallest_normal * form.epsilon))
    return least + 2, math.frexp(form.largest)[1] - 1


def stored(a: np.ndarray, precision: str, library: str) -> Any:
    """An array whose entries are stored in a format, or in one with the same exponents."""
    if library == "torch":
        torch = importlib.import_module("torch")
        return torch.from_numpy(a.copy()).to(getattr(torch, precision))
    return a.astype(np.float32 if precision == "bfloat16" else precision)


def to_numpy(q: Any) -> np.ndarray:
    """Double precision, from either library."""
    return q.double().numpy() if hasattr(q, "double") else np.asarray(q).astype(np.float64)


def scale_row(precision: str, library: str, shape: tuple[int, int]) -> dict[str, Any]:
    """How the factor of c A changes with c, over the whole range of a format."""
    rng = np.random.default_rng(3)
    a = rng.choice([1, 1.25, 1.5, 1.75], shape) * rng.choice([-1, 1], shape)
    options = ours(precision, 15) | {"precision": precision}
    low, high = scale_range(precision)
    reference = to_numpy(polarlib.orthogonalize(stored(a, precision, library), **options))
    unit = format_of(precision).unit_roundoff
    differ, exact, worst = 0, 0.0, 0.0

    def away(c: float) -> float:
        q = polarlib.orthogonalize(stored(a * c, precision, library), **options)
        return float(np.linalg.norm(to_numpy(q) - reference)) / math.sqrt(min(shape)) / unit

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(low, high + 1):
            distance = away(2.0**k)
            differ += distance > 0
            exact = max(exact, distance)
        # Other factors round the matrix itself first: to a part in u, if nothing is subnormal.
        normal = round(math.log2(format_of(precision).smallest_normal))
        for exponent in np.linspace(normal, high - 1, 24):
            worst = max(worst, away(2.0**exponent))
        zero = polarlib.orthogonalize(stored(a * 0.0, precision, library), **options)
    return {
        "format": precision, "library": library, "low": low, "high": high,
        "powers": high + 1 - low, "differ": differ, "powers worst": exact, "worst": worst,
        "zero": bool(np.all(to_numpy(zero) == 0)),
    }  # fmt: skip


def scale_rows(quick: bool) -> list[dict[str, Any]]:
    """Every format, on NumPy, and on torch where that multiplies in it quickly."""
    shape = (24, 16) if quick else (96, 64)
    jobs = [("numpy", f) for f in ("bfloat16", "float16", "float32", "float64")]
    if importlib.util.find_spec("torch"):
        jobs += [("torch", f) for f in ("bfloat16", "float32")]
    return [scale_row(precision, library, shape) for library, precision in jobs]


# -- simulated and native --------------------------------------------------------------------


def units(x: np.ndarray, y: np.ndarray) -> float:
    """Largest difference in units in the last place of bfloat16.

    Entries smaller than the root of the mean square count with its unit: sums that cancel have the
    error of their terms.
    """
    size = np.maximum(np.abs(y.astype(np.float64)), np.sqrt(np.mean(y.astype(np.float64) ** 2)))
    unit = 2.0 ** np.floor(np.log2(size)) * format_of("bfloat16").epsilon
    return float(np.max(np.abs(x.astype(np.float64) - y) / unit))


def agreement(shape: tuple[int, int], seed: int = 0) -> list[dict[str, float]]:
    """Simulated bfloat16 beside torch's own, step by step over our schedule of five steps.

    Each step is taken twice: along the whole way, and from the very iterate that torch has.
    """
    torch = importlib.import_module("torch")
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape).astype(np.float32)
    base = ops_of(a)
    x = round_to(a / np.float32(np.linalg.norm(a)), format_of("bfloat16"), base)
    simulated = rounded(base, "bfloat16")
    t = torch.from_numpy(x.copy()).to(torch.bfloat16)
    native = rounded(ops_of(t), "bfloat16")
    rows = []
    for step in our_schedule("bfloat16", 15).steps:
        same_start = iterate(t.float().numpy(), [step], simulated)
        x = iterate(x, [step], simulated)
        t = iterate(t, [step], native)
        row = {}
        for label, y in (("way", x), ("step", same_start)):
            z = t.float().numpy()
            row[f"{label}, equal"] = float(np.mean(y == z))
            row[f"{label}, units"] = units(y, z)
            row[f"{label}, distance"] = float(np.linalg.norm(y - z) / np.linalg.norm(z))
        rows.append(row)
    return rows


# -- other packages' own code ----------------------------------------------------------------


def pitfalls(peer: other.Peer) -> dict[str, str]:
    """What becomes of inputs that are large, tiny, zero or of rank one, and of the input itself."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((48, 32)).astype(np.float32)
    reference = peer.result(a)

    def about(q: np.ndarray, like: np.ndarray | None) -> str:
        if not np.all(np.isfinite(q)):
            return "NaN" if np.any(np.isnan(q)) else "infinity"
        if like is None:
            return "0" if not q.any() else "not 0"
        if not q.any():
            return "0"
        away = float(np.linalg.norm(q - like) / np.linalg.norm(like))
        if np.linalg.norm(q) < 0.01 * np.linalg.norm(like):
            return "nearly 0"
        return "same" if away < 0.05 else f"off by {away:.2g}"

    lost = 0
    for seed in range(50):
        draw = np.random.default_rng(seed)
        one = np.outer(draw.standard_normal(48), draw.standard_normal(32)).astype(np.float32)
        q = peer.result(one)
        lost += not (np.all(np.isfinite(q)) and np.linalg.norm(q, 2) <= SAFE)
    given = peer.given(a)
    before = np.array(to_numpy(given))
    peer.function(given)
    return {
        "1e25 A": about(peer.result(a * np.float32(1e25)), reference),
        "1e-30 A": about(peer.result(a * np.float32(1e-30)), reference),
        "zero": about(peer.result(a * 0), None),
        f"rank one, above {SAFE}": f"{lost} of 50",
        "input": "kept" if np.array_equal(before, to_numpy(given)) else "OVERWRITTEN",
    }


def ours_as_peer(precision: str, products: int, library: str = "torch") -> other.Peer:
    """Ours on the same arrays as the other packages."""
    options = ours(precision, products)
    return other.Peer(
        f"ours, {precision}, {products} products", "", library, precision, precision, products,
        lambda x: polarlib.orthogonalize(x, form="plain", **options),
    )  # fmt: skip


def peer_rows(found: dict[str, other.Peer], n: int, aspects: Sequence[int]) -> list[dict]:
    """Figures of other packages' own code, and of ours at the same products and format."""
    rows = []
    own: dict[tuple[str, int, str], tuple[np.ndarray, dict[str, str]]] = {}
    all_cases = {f: stress_cases(FIELD, f, n, aspects, 1) for f in FORMATS}

    def run(peer: other.Peer) -> tuple[np.ndarray, dict[str, str]]:
        cases = all_cases[peer.takes]
        return np.array([metrics(c, peer.result(c.matrix)) for c in cases]), pitfalls(peer)

    with other.eager():
        for peer in found.values():
            # float16 products are slow in torch on a processor: ours runs in what it is given.
            precision = peer.takes if peer.precision == "float16" else peer.precision
            key = precision, peer.products, peer.library
            if key not in own:
                own[key] = run(ours_as_peer(*key))
            theirs, falls = run(peer)
            rows.append(
                {
                    "name": peer.name, "source": peer.source, "products": peer.products,
                    "format": precision, "products in": peer.precision, "theirs": theirs,
                    "ours": own[key][0], "pitfalls": falls,
                    "spectra": [c.spectrum for c in all_cases[peer.takes]],
                }
            )  # fmt: skip
        for (precision, products, library), (figures, falls) in own.items():
            if products == 15:
                name = f"**ours**, {library}, {precision}"
                rows.append({"name": name, "ours": figures, "pitfalls": falls})
    return rows


# -- the page --------------------------------------------------------------------------------


def number(x: float) -> str:
    """Three digits, or that it diverges."""
    return f"{x:.3g}" if math.isfinite(x) and abs(x) < DIVERGED else "diverges"


def four_digits(x: float) -> str:
    """Four decimals, or one digit of a number that is small for that."""
    return f"{x:.4f}" if x >= 1e-3 else f"{x:.0e}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(figures: np.ndarray) -> np.ndarray:
    """Mean over the cases that did not diverge."""
    kept = figures[figures[:, -1] < DIVERGED - 1]
    return kept.mean(axis=0) if len(kept) else np.full(figures.shape[1], math.inf)


def mean_table(rows: Sequence[dict]) -> str:
    """Means: theirs / ours, and on how many spectra ours is better - tie - theirs better."""
    lines = []
    for row in rows:
        won = counts(row)
        cells = [
            f"{number(t)} / {number(o)} ({w[0]}-{w[1]}-{w[2]})"
            for t, o, w in zip(_mean(row["theirs"]), _mean(row["ours"]), won.T, strict=True)
        ]
        lines.append([*_head(row), *cells])
    return table(["set", "products", "diverges", *METRICS], lines)


def worst_table(rows: Sequence[dict]) -> str:
    """Worst figures: theirs / ours."""
    lines = []
    for row in rows:
        pairs = zip(row["theirs"].max(axis=0), row["ours"].max(axis=0), strict=True)
        lines.append([*_head(row), *(f"{number(t)} / {number(o)}" for t, o in pairs)])
    return table(["set", "products", "diverges", *METRICS], lines)


def _head(row: dict) -> list[str]:
    lost = diverged(row["theirs"])
    return [f"`{row['name']}`", str(row["products"]), f"{lost} of {len(row['theirs'])}"]


def scalar_table() -> str:
    """Worst scalar errors on [1e-3, 1]."""
    lines = []
    for name in SETS:
        s = polarlib.schedule(name)
        there = [
            polarlib.design.for_precision(f, LOWER, matmuls=s.matmuls, degrees=(3, 5))
            for f in FORMATS
        ]
        both = (there, [our_schedule(f, s.matmuls) for f in FORMATS])
        cells = [four_digits(scalar_error(own)) for group in both for own in group]
        lines.append([f"`{name}`", str(s.matmuls), four_digits(scalar_error(s)), *cells])
    own = (f"{kind}, {f}" for kind in ("for this interval", "default") for f in FORMATS)
    return table(["set", "products", "theirs", *own], lines)


def others_table(rows: Sequence[dict]) -> str:
    """Sets for other functions beside designs for them."""
    lines = [
        [r["name"], r["function"], r["interval"], str(r["products"]), *map(number, r["errors"])]
        for r in rows
    ]
    header = ["schedule", "function", "interval", "products", "worst error"]
    return table([*header, "on matrices"], lines)


def gentle_table(rows: Sequence[dict]) -> str:
    """Means of sets that are near to 1, of the default schedule and of designs."""
    lines = [
        [
            r["format"],
            r["name"],
            str(r["products"]),
            f"{r['slope']:.0f}",
            *map(number, r["figures"]),
        ]
        for r in rows
    ]
    return table(["format", "schedule", "products", "slope at 0", *METRICS], lines)


def zero_table(rows: Sequence[dict]) -> str:
    """Matrices of deficient rank."""
    lines = []
    for r in rows:
        d = r["distances"]
        lines.append(
            [r["name"], r["shape"], number(r["noise"]), number(d["default"]),
             f"{number(d['published'])} (`{r['best']}`)", number(d["float16"]),
             number(d["float32"]), f"{number(d['design'])} ({r['products']})",
             number(d["truncated"])]
        )  # fmt: skip
    header = ["singular values", "shape", "noise", "default", "nearest published set"]
    remedies = ["default, float16", "default, float32", "design (products)", "`top_singular`"]
    return table([*header, *remedies], lines)


def safety_table(rows: Sequence[dict]) -> str:
    """Largest singular value in every form; losses; least alignment."""
    columns = [f"{form}, {k}" for k in (5, 9) for form in FORMS]
    lines = []
    for row in rows:
        there = [s for s in row["found"].values() if s is not None]
        cells = [
            "—" if (s := row["found"][c]) is None else f"{s.largest:.3g}" if s.largest < 1e4
            else "diverges" for c in columns
        ]  # fmt: skip
        worst = max(there, key=lambda s: s.largest)
        lines.append(
            [row["format"], f"`{row['name']}`", *cells, str(sum(s.lost for s in there)),
             f"{min(s.smallest for s in there):.2g}", worst.where]
        )  # fmt: skip
    header = ["format", "set", *columns, "not finite", "least ⟨A, Q⟩ / ‖A‖_*", "worst at"]
    return table(header, lines)


def scale_table(rows: Sequence[dict]) -> str:
    """What scaling does."""
    lines = [
        [
            r["library"], r["format"], f"2^{r['low']} … 2^{r['high']}",
            f"{r['powers'] - r['differ']} of {r['powers']}", f"{r['powers worst']:.2f}",
            f"{r['worst']:.2f}",
            "0" if r["zero"] else "NOT 0",
        ]
        for r in rows
    ]  # fmt: skip
    header = ["library", "format", "powers of two", "same bit for bit", "distance at most, in u"]
    return table([*header, "other c: distance, in u", "c = 0"], lines)


def agreement_table(found: dict[str, list[dict[str, float]]]) -> str:
    """Simulated beside native, step by step."""
    lines = []
    for shape, rows in found.items():
        for k, row in enumerate(rows, 1):
            cells = [
                f"{row[f'{w}, equal']:.5f} | {row[f'{w}, units']:.2g} | {row[f'{w}, distance']:.1e}"
                for w in ("step", "way")
            ]
            lines.append([shape, str(k), *cells])
    header = ["shape", "step", "equal", "units at most", "distance"]
    return table([*header, "all steps: equal", "units at most", "distance"], lines)


def peers_table(rows: Sequence[dict]) -> str:
    """Means of other packages' own code."""
    lines = []
    for row in rows:
        if "theirs" in row:
            cells = [
                f"{number(t)} / {number(o)} ({w[0]}-{w[1]}-{w[2]})"
                for t, o, w in zip(
                    _mean(row["theirs"]), _mean(row["ours"]), counts(row).T, strict=True
                )
            ]
            lines.append([row["name"], row["source"], *_head(row)[1:], *cells])
    return table(["package", "source", "products", "diverges", *METRICS], lines)


def pitfall_table(rows: Sequence[dict]) -> str:
    """Hard inputs."""
    header = list(rows[0]["pitfalls"])
    return table(["package", *header], [[r["name"], *r["pitfalls"].values()] for r in rows])


def picture(rows: Sequence[dict]) -> Any:
    """Ratio theirs / ours, a dot for each spectrum, a panel for each metric and 16-bit format."""
    from matplotlib.figure import Figure

    from polarlib.plot import COLOURS, INK, MARKERS

    formats = [f for f in FORMATS if any(r["format"] == f for r in rows)]
    sets = len({r["name"] for r in rows})
    height = 1.2 + max(2.9, 0.6 + 0.18 * sets) * len(formats)
    drawn = Figure(figsize=(13, height), layout="constrained", facecolor="white")
    panels = drawn.subplots(len(formats), len(METRICS), sharey=True, squeeze=False)
    top = 30.0  # dots beyond stand at the edge
    for i, (line, precision) in enumerate(zip(panels, formats, strict=True)):
        own = [r for r in rows if r["format"] == precision]
        floor = format_of(precision).unit_roundoff
        for j, (ax, metric) in enumerate(zip(line, METRICS, strict=True)):
            for y, row in enumerate(own):
                theirs, our = (
                    np.maximum(by_spectrum(row[who], row["spectra"])[:, j], floor)
                    for who in ("theirs", "ours")
                )
                ratio = np.clip(np.nan_to_num(theirs / our, posinf=top), 1 / top, top)
                better = ratio < 1
                for k, mask in enumerate((~better, better)):
                    ax.plot(
                        ratio[mask], np.full(mask.sum(), y), linestyle="", alpha=0.75,
                        color=COLOURS[(3, 4)[k]], marker=MARKERS[(0, 3)[k]], markersize=5 + k,
                    )  # fmt: skip
            ax.axvline(1.0, color=INK, linewidth=1.0, linestyle="--")
            ax.set_xscale("log")
            ax.set_xlim(0.8 / top, 1.25 * top)
            ax.grid(color="#DDDDDD", linewidth=0.6)
            ax.set_axisbelow(True)
            if i == 0:
                ax.set_title(metric)
            if i == len(formats) - 1:
                ax.set_xlabel("theirs / ours")
        line[0].set_yticks(range(len(own)), [r["name"] for r in own])
        line[0].set_ylabel(precision)
        line[0].invert_yaxis()
    return drawn


def draw(rows: Sequence[dict], folder: Path) -> None:
    """Write the figure; the same figures give the same files, bit for bit."""
    import matplotlib

    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "polarlib"}):
        drawn = picture(rows)
        for suffix, extra in (("png", {"dpi": 100}), ("svg", {"metadata": {"Date": None}})):
            save = functools.partial(drawn.savefig, format=suffix, **extra)
            write_whole(folder / f"stress.{suffix}", save)


def where(found: dict[str, other.Peer]) -> str:
    """The machine and versions."""
    parts = [f"{platform.machine()}, NumPy {np.__version__}"]
    parts += sorted({f"{p.name.partition(',')[0]} {p.source}" for p in found.values()})
    return "\n".join(f"- {part}" for part in parts)


def losses(rows: Sequence[dict]) -> str:
    """Where a published set is better than ours in the mean, over all formats."""
    lines = []
    for row in rows:
        found = outcome(row["theirs"].mean(axis=0), row["ours"].mean(axis=0), row["format"])
        means = (row[who].mean(axis=0) for who in ("theirs", "ours"))
        lost = [
            f"{metric} {number(t)} against {number(o)}"
            for metric, f, t, o in zip(METRICS, found, *means, strict=True)
            if f < 0
        ]
        if lost:
            name = f"{row['format']}, `{row['name']}` ({row['products']} products)"
            lines.append(f"- {name}: {'; '.join(lost)}")
    return "\n".join(lines) or "Nowhere."


SETS_TEXT = """## Scalar worst error

Worst |1 − s(x)| on [1e-3, 1], division of the input by a safety factor included: of the published
sets, of `design.for_precision(format, 1e-3, matmuls=products)`, and of the default schedule. That
is made for another interval, with a tighter norm: on spectra it has the smaller errors, as the
tables below show; on this interval it is not the best, and cannot be both (decisions/0011).

{scalar}

Sets for other functions beside the designs of this library, with all coefficients in double
precision: worst error on the interval of the set (of `inverse_sqrt_nv` in x = √λ, relative error of
the root), and the largest relative error ‖F(A) − f(A)‖₂ / ‖f(A)‖₂ on
{functions}. Products of
`inverse_sqrt_nv` are those of the coupled iteration, without the division by a bound.

{others}

## Verdicts

Means over the {field} spectra of the field's stress test, shapes {shapes}, draws
of each: {seeds}.

{verdicts}

Where a published set is better in the mean: on these spectra,

{losses}

on the adversarial spectra,

{adversarial_losses}

on the gradients that the package ships,

{gradient_losses}

The default schedule is as near to 1 as its reach allows: its error is 0.019 down to the lower end
of its interval, which is {reach} for 15 products in bfloat16. Sets for [1e-2, 1], or with a smaller
slope at 0, can be nearer to 1 above, which backward error and dual gap weigh most. Designs for
[1e-2, 1] with at most as many products, `design.for_precision(format, 1e-2, matmuls=products)` in
the normalisation of the default schedule, make the same exchange. Means on the same spectra, one
draw of each:

{gentle}

![Ratios of the five metrics, theirs to ours, a dot for each spectrum](../figures/stress.png)

Dots to the right of the line: ours is better there (circles); to the left: theirs is (triangles).
Figures below one unit roundoff are drawn as one; ratios beyond 30 stand at the edge.

## Means and worst cases

{tables}

## Zero singular values

Rounding a matrix to bfloat16 turns its zero singular values into values of about u / √n times the
largest one, and a schedule multiplies them by its slope, as it does any small value: by {slope} in
the default schedule of 15 products. Distance ‖Q − U‖_F / √rank to the partial isometry U of the
matrix as it was before it was rounded; *noise* is the largest of the values that rounding made,
relative to the largest one. Sets with a small slope, which reach less far, have less of it.

{zeros}

What helps: to compute in float16 or float32 what has not been rounded to bfloat16 before; of
bfloat16 matrices, a schedule that reaches no further than is wanted, here
`design.for_precision("bfloat16", lower, matmuls=15)` with the smallest singular value over the
largest as `lower`, at most 0.1, in the normalisation of the default schedule; or to leave the noise
out, `u, s, vh = top_singular(a, rank)` and `u @ vh`.

## Safety

Largest singular value of the result in plain form, in Gram form and in the form that `form="auto"`
chooses, the first five and nine steps; over {hostile} matrices, {safe_shapes}: the constant
and the Hadamard matrix, and the adversarial spectra

{adversarial}.

Sets that one rounding of the format can push past divergence are not here: `orthogonalize` warns of
them.

{safety}"""

TEXT = """# Stress test in low precision

Made by `python benchmarks/stress.py --markdown docs/evidence/stress.md`; nothing in the tables is
typed by
hand. Every published set of coefficients, at its own number of matrix products, beside our schedule
of the same number of products.

{machine}

Formats are simulated as hardware works: operands rounded, products accumulated in single precision,
one rounding of each result. Plain form, normalisation and safety factors as each set has them
(`turbo_muon` and `aol_nv`: rescaled columns, whose product is not counted).

## Metrics

For Q and H = (QᵀA + AᵀQ)/2, in double precision, against the matrix as its format has it:

- *orthogonality* ‖QᵀQ − I‖_F / √n on the small side. Rank-deficient matrices cannot reach 0: their
  zero singular values stay zero, for all contenders alike.
- *backward error* ‖A − QH‖_F / ‖A‖_F
- *negative part*: Frobenius norm of the negative eigenvalues of H, relative to ‖A‖_F
- *dual gap* |1 − ⟨A, Q⟩ / ‖A‖_*|. Without the absolute value it is negative where singular values
  of Q exceed 1, which is no merit: a factor twice too large would have the gap −1.
- *bound violation* max(‖Q‖₂ − 1, 0)

Cells are *theirs / ours*; smaller is better. In parentheses: spectra on which ours is better −
ties − spectra on which theirs is. A spectrum counts by its mean over shapes and draws. Differences
of at most one unit roundoff of the format are ties (2⁻⁸ in bfloat16, 2⁻¹¹ in float16, 2⁻²⁴ in
float32): rounding alone moves each of the figures by about that. A result that is not finite or has
a singular value above {diverged:g} *diverges*: it is counted, and left out of the means.

<!-- begin sets -->
{sets}
<!-- end sets -->

## Range

<!-- begin range -->
{range}
<!-- end range -->

## Scale

Factors of c·A against that of A, with entries ±1, ±1.25, ±1.5, ±1.75, which powers of two down
into the subnormal numbers keep exact; 24 other c between the smallest normal number and the largest
round A itself. No warning is raised.

{scale}

## Simulated and native bfloat16

Our five steps on a Gaussian matrix, simulated on NumPy and native in torch: share of equal entries,
largest difference in units in the last place (entries below the root of the mean square count with
its unit), and distance relative to the norm; first for the step alone, from the same iterate, then
over all steps so far.

{agreement}

## Other packages' own code

As their users call it, with their normalisation, in torch (optax: JAX) on a processor; ours on the
same arrays in the same format. Spectra as above, n = {peer_n}. gram-newton-schulz computes in
float16 whatever it is given, with its default restart; ours beside it computes in bfloat16.

{peers}

What becomes of 1e25 A and of 1e-30 A (the same factor is right), of zero, of 50 random matrices of
rank one, and of the array that was passed:

{pitfalls}
"""


def sets_part(found: dict[str, Any]) -> str:
    """The sections of the page on published sets."""
    groups = {
        f"The {len(FIELD)} spectra of the field's stress test": found["compared"],
        f"The {len(ADVERSARIAL)} adversarial spectra": found["adversarial rows"],
        "The gradients that the package ships": found["gradients"],
    }
    parts = []
    for title, rows in groups.items():
        for precision in FORMATS:
            own = [r for r in rows if r["format"] == precision]
            if own:
                parts += [f"### {title}, {precision}", "Means:", mean_table(own)]
                parts += ["Worst:", worst_table(own)]
    compared, adversarial, gradients = groups.values()
    return SETS_TEXT.format(
        scalar=scalar_table(),
        others=others_table(found["others"]),
        functions=OTHER_MATRICES,
        verdicts="\n".join(f"- {verdict(row)}" for row in compared),
        losses=losses(compared),
        adversarial_losses=losses(adversarial),
        gradient_losses=losses(gradients),
        reach=f"{our_schedule('bfloat16', 15).lower:.2g}",
        gentle=gentle_table(found["gentle"]),
        zeros=zero_table(found["zeros"]),
        slope=f"{our_schedule('bfloat16', 15).slope:.0f}",
        tables="\n\n".join(parts),
        field=len(FIELD),
        adversarial="; ".join(ADVERSARIAL),
        safety=safety_table(found["safety"]),
        **{k: found[k] for k in ("shapes", "seeds", "hostile", "safe_shapes")},
    )


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    none = "torch is not installed here."
    return TEXT.format(
        sets=sets_part(found),
        scale=scale_table(found["scale"]),
        agreement=agreement_table(found["agreement"]) if "agreement" in found else none,
        peers=peers_table(found["peers"]) if "peers" in found else none,
        pitfalls=pitfall_table(found["peers"]) if "peers" in found else none,
        diverged=DIVERGED,
        **{k: found[k] for k in ("machine", "range", "peer_n")},
    )


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, Safety):
        return value._asdict()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def summary(rows: Sequence[dict], console: Console) -> None:
    """Print the verdicts."""
    for row in rows:
        console.print(f"- {verdict(row)}", markup=False)


def size(quick: bool) -> tuple[int, tuple[int, ...], int]:
    """Number of columns, aspect ratios and draws of the matrices of the stress test."""
    return (32, (1, 4), 1) if quick else (128, (1, 4, 8), 3)


def of_sets(quick: bool, console: Console) -> Iterator[tuple[str, Any]]:
    """The measurements of published sets."""
    n, aspects, seeds = size(quick)
    yield "shapes", ", ".join(f"{a * n} x {n}" for a in aspects)
    yield "seeds", seeds
    for key, names in (("compared", FIELD), ("adversarial rows", ADVERSARIAL)):
        rows = []
        for precision in FORMATS:
            cases = stress_cases(names, precision, n, aspects, seeds)
            rows += compare(cases, precision, console)
        yield key, rows
    rows = []
    for precision in FORMATS:
        rows += compare(gradient_cases(precision, 2 if quick else 1000), precision, console)
    yield "gradients", rows
    sizes = (16,) if quick else (64, 128)
    found = safety_rows(sizes, console)
    yield "hostile", found[0]["cases"]
    yield "safe_shapes", f"n = {' and '.join(map(str, sizes))}, square, 4 : 1 and 8 : 1"
    yield "safety", found
    yield "others", other_rows()
    yield "gentle", gentle_rows(n, aspects)
    yield "zeros", zero_rows(n, aspects)


def everything(quick: bool, folder: Path | None, console: Console) -> Iterator[tuple[str, Any]]:
    """All measurements, one after the other."""
    yield from of_sets(quick, console)
    jobs = QUICK_RANGE_JOBS if quick else RANGE_JOBS
    yield "range", range_part(list(range_results(jobs, console)), jobs)
    yield "scale", scale_rows(quick)
    peer_n = 32 if quick else 128
    yield "peer_n", peer_n
    if importlib.util.find_spec("torch"):
        shapes = [(32, 32)] if quick else [(256, 256), (1024, 256)]
        yield "agreement", {f"{m} x {k}": agreement((m, k)) for m, k in shapes}
    peers, missing = other.find(folder)
    for name, why in missing.items():
        console.print(f"{name} is not compared with: {why}", markup=False)
    yield "machine", where(peers)
    if peers:
        yield "peers", peer_rows(peers, peer_n, size(quick)[1])


def main(
    markdown: Annotated[Path | None, typer.Option(help="Write the page and its figure.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    peers: Annotated[Path | None, typer.Option(help="Folder of other packages.")] = None,
    quick: Annotated[bool, typer.Option(help="Small matrices, one draw.")] = False,
    only_range: Annotated[
        bool, typer.Option("--range", help="The section on range alone.")
    ] = False,
    only_sets: Annotated[
        bool, typer.Option("--sets", help="The sections on published sets, and the figure, alone.")
    ] = False,
) -> None:
    """Measure, print the verdicts, write the page."""
    console = Console(width=200)
    if only_range:
        jobs = QUICK_RANGE_JOBS if quick else RANGE_JOBS
        part = range_part(list(range_results(jobs, console)), jobs)
        if markdown is None:
            console.print(part, markup=False)
        else:
            replace_part(markdown, "range", part)
        return
    found = dict(of_sets(quick, console) if only_sets else everything(quick, peers, console))
    summary(found["compared"], console)
    if json_file is not None:
        text = json.dumps(plain(found), indent=1)
        write_whole(json_file, lambda f: f.write(text.encode()))
    if markdown is not None:
        if only_sets:
            replace_part(markdown, "sets", sets_part(found))
        else:
            text = page(found)
            write_whole(markdown, lambda f: f.write(text.encode()))
        draw(found["compared"], markdown.parent / "figures")


if __name__ == "__main__":
    typer.run(main)
