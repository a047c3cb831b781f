"""Matrices, metrics and comparisons of the stress test: published sets and the default schedule.

Number formats are simulated on NumPy: operands rounded as on hardware, products accumulated in
single precision, one rounding of each result. Nothing is timed. The command is stress.py.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from rich.console import Console

import polarlib
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to
from polarlib.files import sample_matrices
from polarlib.testing import SPECTRA, orthonormal, spectrum, with_singular_values

METRICS = ("orthogonality", "backward error", "negative part", "dual gap", "bound violation")
FORMATS = ("bfloat16", "float16", "float32")
STRESS, ADVERSARIAL = SPECTRA[:11], SPECTRA[11:]  # gram-newton-schulz's stress test, and others
# Published sets, each compared at its own number of products.
SETS = (
    *("polar_express", "polar_express_102", "polar_express_105", "you", "cans", "turbo_muon"),
    *("jordan", "aol_nv", "cubic5", "newton_schulz_5", "deepseek_v4", "you_6", "modula"),
    *("simple_quintic", "ns8", "root_2048x2048", "root_2048x3072", "root_2048x8192"),
    *("root_2048x16384", "gefen_3", "gefen_4", "cesista", "polar_express_nv"),
    *("polar_express_1e4", "turbo_muon_full"),
)
# Sets for other functions, each with designs for the same function: labels and schedules.
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
LOWER = 1e-3  # lower end of the interval of Polar Express and of most other sets
DIVERGED = 10.0  # a result with a singular value above this counts as divergent
SAFE = 1.3  # bound of the default schedule's largest singular value
FORMS = ("plain", "gram", "auto")


SIDES = ("published", "default")  # of a comparison


# -- comparison -------------------------------------------------------------------------------


@functools.cache
def default_of(precision: str, products: int) -> polarlib.Schedule:
    """Return the default schedule of a number of products: steps of degree 5 where 3 divides it."""
    steps, rest = divmod(products, 3)
    if rest:
        return polarlib.default_schedule(precision, matmuls=products)
    return polarlib.default_schedule(precision, steps=steps)


def default_options(precision: str, products: int) -> dict[str, Any]:
    """Return the arguments of orthogonalize() for the default schedule."""
    return {"schedule": default_of(precision, products)}


def factor(a: np.ndarray, precision: str, **options: Any) -> np.ndarray:
    """Return one orthogonalisation in double precision, without warnings about the schedule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        q = polarlib.orthogonalize(a, precision=precision, **options)
    return q.astype(np.float64)


class Case(NamedTuple):
    """A matrix of the test, rounded to a format."""

    spectrum: str
    shape: str
    matrix: np.ndarray
    nuclear: float


def case(name: str, a: np.ndarray, precision: str) -> Case:
    """Return a matrix rounded to a format."""
    single = a.astype(np.float32)
    if precision != "float32":
        single = round_to(single, format_of(precision), ops_of(single))
    nuclear = float(np.sum(scipy.linalg.svdvals(single.astype(np.float64))))
    return Case(name, f"{a.shape[0]} x {a.shape[1]}", single, nuclear)


def stress_cases(
    names: Iterable[str], precision: str, n: int, aspects: Sequence[int], seeds: int
) -> list[Case]:
    """Return matrices of given spectra, of shapes aspect n x n, with several draws of vectors."""
    return [
        case(name, with_singular_values(spectrum(name, n), aspect * n, seed=seed), precision)
        for name in names
        for aspect in aspects
        for seed in range(seeds)
    ]


def gradient_cases(precision: str, limit: int) -> list[Case]:
    """Return the first bundled gradients."""
    return [case(name, a, precision) for name, a in list(sample_matrices().items())[:limit]]


def metrics(case: Case, q: np.ndarray) -> np.ndarray:
    """Return the five metrics of a factor, in double precision; infinite if it is not finite."""
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
    """Return the metrics of all cases, shape (cases, 5)."""
    return np.array(
        [metrics(c, factor(c.matrix, precision, form="plain", **options)) for c in cases]
    )


def scalar_error(s: polarlib.Schedule) -> float:
    """Return the worst |1 - s(x)| on [1e-3, 1], with the division of the input by the safety."""
    low, high = s.image(LOWER, 1.0)
    return max(1 - low, high - 1)


def compare(cases: Sequence[Case], precision: str, console: Console | None = None) -> list[dict]:
    """Compare published sets with the default schedule at equal products, on the same matrices."""
    rows = []
    own: dict[int, np.ndarray] = {}
    for name in SETS:
        s = polarlib.schedule(name)
        if s.matmuls not in own:
            own[s.matmuls] = measure(cases, precision, **default_options(precision, s.matmuls))
        figures = measure(cases, precision, schedule=s)
        row = {"name": name, "products": s.matmuls, "format": precision, "published": figures}
        row["default"] = own[s.matmuls]
        row["spectra"] = [c.spectrum for c in cases]
        rows.append(row)
        if console is not None:
            console.print(f"{precision}, {name}: {len(cases)} matrices")
    return rows


def scalar_rows() -> list[dict]:
    """Compute the worst scalar errors of sets, of designs for their interval and of defaults."""
    rows = []
    for name in SETS:
        s = polarlib.schedule(name)
        designs = [
            polarlib.design.for_precision(f, LOWER, matmuls=s.matmuls, degrees=(3, 5))
            for f in FORMATS
        ]
        rows.append(
            {
                "name": name,
                "products": s.matmuls,
                "published": scalar_error(s),
                "design": [scalar_error(d) for d in designs],
                "default": [scalar_error(default_of(f, s.matmuls)) for f in FORMATS],
            }
        )
    return rows


# -- sets for other functions ----------------------------------------------------------------

OTHER_MATRICES = "three 96 x 96 matrices, values from geometric to uniform in the interval"


def other_rows() -> list[dict]:
    """Compare published sets for other functions with designs for the same interval."""
    rows = []
    for name, designs in OTHER_SETS.items():
        published = polarlib.schedule(name)
        own = {label: make() for label, make in designs.items()}
        for label, s in {f"`{name}`": published, **own}.items():
            root = published.target == "polar"
            rows.append(
                {
                    "name": label,
                    "function": "A^(-1/2)" if root else "min(σ, 1)",
                    "interval": f"[{published.lower:g}, {published.upper:g}]",
                    "products": coupled_products(s) if root else s.matmuls,
                    "errors": (
                        s.error(published.lower or None),
                        on_matrices(s, published.lower, root),
                    ),
                }
            )
    return rows


def coupled_products(s: polarlib.Schedule) -> int:
    """Count the products of the coupled iteration for inverse square roots.

    Per step those of the polynomial, one for Q and two for R; Q = I costs none in the first step,
    and R is not needed after the last one.
    """
    return s.matmuls - 2 * len(s) + 3 * len(s) - 3


def on_matrices(s: polarlib.Schedule, lower: float, root: bool) -> float:
    """Return the largest relative error of a matrix function, in double precision."""
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
    """Return the singular values other than zero of three rank-deficient matrices."""
    return {
        "rank one": np.ones(1),
        "rank ten, 1 to 0.1": np.geomspace(1, 0.1, 10),
        "half of them, 1 to 0.01": np.geomspace(1, 0.01, n // 2),
    }


def zero_rows(n: int, aspects: Sequence[int]) -> list[dict]:
    """Measure distances to the partial isometry of the matrix before it was rounded."""
    return [zero_row(name, s, n, k * n) for name, s in deficient(n).items() for k in aspects]


def zero_row(name: str, s: np.ndarray, n: int, m: int) -> dict:
    """Measure the default, the closest published set, and three remedies, for one matrix."""
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


# -- error near 1 and reach -------------------------------------------------------------------

# Sets whose backward error is below the default's in some comparison.
GENTLE = ("gefen_4", "modula", "cesista", "you_6")


def gentle_rows(n: int, aspects: Sequence[int]) -> list[dict]:
    """Compare these sets, the default schedule and designs for [1e-2, 1] at equal products."""
    rows = []
    for precision in ("bfloat16", "float32"):
        cases = stress_cases(STRESS, precision, n, aspects, 1)
        for name in GENTLE:
            published = polarlib.schedule(name)
            design = polarlib.design.for_precision(
                precision, 1e-2, matmuls=published.matmuls, degrees=(3, 5)
            )
            every = {
                f"`{name}`": {"schedule": published},
                "default": default_options(precision, published.matmuls),
                "for [1e-2, 1]": {"schedule": design, "normalisation": "moments"},
            }
            for label, options in every.items():
                mean = measure(cases, precision, **options).mean(axis=0)
                row = {"name": label, "format": precision, "products": published.matmuls}
                slope = options["schedule"].slope
                rows.append(row | {"slope": slope, "means": mean})
    return rows


# -- counting --------------------------------------------------------------------------------


def by_spectrum(figures: np.ndarray, spectra: Sequence[str]) -> np.ndarray:
    """Return the mean of each spectrum over shapes and draws, shape (spectra, 5)."""
    names = list(dict.fromkeys(spectra))
    at = np.array([names.index(s) for s in spectra])
    return np.array([figures[at == k].mean(axis=0) for k in range(len(names))])


def outcome(published: np.ndarray, default: np.ndarray, precision: str) -> np.ndarray:
    """Return +1 where the default is better, -1 where the set is, 0 within one unit roundoff."""
    tie = format_of(precision).unit_roundoff
    with np.errstate(invalid="ignore"):
        difference = np.where(np.isinf(published) & np.isinf(default), 0.0, published - default)
    return np.where(np.abs(difference) <= tie, 0, np.sign(difference)).astype(int)


def diverged(figures: np.ndarray) -> int:
    """Count the results that are divergent or not finite."""
    return int(np.sum(~(figures[:, -1] < DIVERGED - 1)))


def counts(row: dict) -> np.ndarray:
    """Count spectra on which the default is better, ties, and the rest: shape (3, 5)."""
    both = (by_spectrum(row[who], row["spectra"]) for who in SIDES)
    found = outcome(*both, row["format"])
    return np.array([(found == k).sum(axis=0) for k in (1, 0, -1)])


def verdict(row: dict) -> str:
    """Return one line: metrics in which the default is better in the mean, ties, and the rest."""
    found = outcome(*(row[who].mean(axis=0) for who in SIDES), row["format"])
    words = {1: "default better", 0: "tie", -1: "published better"}
    parts = [
        f"{word}: {', '.join(m for m, f in zip(METRICS, found, strict=True) if f == k)}"
        for k, word in words.items()
        if k in found
    ]
    lost = diverged(row["published"])
    note = f"; the set diverges on {lost} of {len(row['published'])}" if lost else ""
    return f"`{row['name']}`, {row['format']}: {'; '.join(parts)}{note}."


# -- safety ----------------------------------------------------------------------------------


def hostile(n: int, aspects: Sequence[int], precision: str) -> list[Case]:
    """Return adversarial spectra, constant and Hadamard matrices (n a power of two)."""
    cases = stress_cases(ADVERSARIAL, precision, n, aspects, 1)
    for aspect in aspects:
        m = aspect * n
        cases.append(case("constant", np.full((m, n), 1.0), precision))
        cases.append(case("Hadamard", scipy.linalg.hadamard(m)[:, :n], precision))
    return cases


def steps_of(name: str, steps: int) -> polarlib.Schedule | None:
    """Return a published set of k steps, all of its steps for five, None if it has fewer."""
    try:
        return polarlib.schedule(name, steps=steps)
    except ValueError:
        s = polarlib.schedule(name)
        return s if steps == 5 and len(s) < steps else None


def safe_sets(precision: str) -> list[str]:
    """Return the names of published sets that are safe in a format (Schedule.is_safe_in)."""
    names = [name for name in polarlib.schedules() if name not in OTHER_SETS]
    return [name for name in names if polarlib.schedule(name).is_safe_in(precision)]


class Safety(NamedTuple):
    """The worst results of one schedule in one form."""

    largest: float
    lost: int
    smallest: float
    where: str


def safety(cases: Sequence[Case], precision: str, form: str, options: dict[str, Any]) -> Safety:
    """Return the largest singular value, losses and the least <A, Q> / ||A||_*."""
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


def default_steps(precision: str, steps: int) -> dict[str, Any]:
    """Return the options for the default schedule with a number of degree-5 steps."""
    return default_options(precision, 3 * steps)


def safety_rows(sizes: Sequence[int], console: Console | None = None) -> list[dict]:
    """Measure every safe set and the default schedule in every form."""
    rows = []
    for precision in ("bfloat16", "float16"):
        cases = [c for n in sizes for c in hostile(n, (1, 4, 8), precision)]
        for name in ("default", *safe_sets(precision)):
            found: dict[str, Safety | None] = {}
            for k in (5, 9):
                if name == "default":
                    options: dict[str, Any] | None = default_steps(precision, k)
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
