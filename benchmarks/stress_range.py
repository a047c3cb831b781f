"""Range, scale, simulated formats and other packages: the other measurements of the stress test.

The command is stress.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import peers as other
import scipy.linalg
from rich.console import Console
from stress_cases import (
    FORMATS,
    SAFE,
    STRESS,
    default_of,
    default_options,
    factor,
    metrics,
    stress_cases,
)

import polarlib
from polarlib.arrays.formats import FORMATS as ALL_FORMATS
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import round_to, rounded
from polarlib.engine.iterate import iterate
from polarlib.testing import orthonormal

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
    """A matrix for the test of a format's range, with its nuclear norm and its factor."""

    name: str
    matrix: np.ndarray
    nuclear: float
    factor: np.ndarray | None


def ranged(shape: tuple[int, int]) -> list[Ranged]:
    """Return six matrices; the well-conditioned one with its factor."""
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
    """A result of the default schedule."""

    format: str
    normalisation: str
    form: str
    where: str
    largest: float
    aligned: float
    distance: float | None


def range_results(jobs: Sequence[Job], console: Console | None = None) -> Iterator[Range]:
    """Apply the default schedule in every format, normalisation and form of the jobs."""
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


def range_part(results: Sequence[Range], jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the worst result of each format and normalisation, and the shapes."""
    rows = []
    for precision in ALL_FORMATS:
        for kind in NORMALISATIONS:
            own = [r for r in results if (r.format, r.normalisation) == (precision, kind)]
            if not own:
                continue
            tops = {
                form: max((r.largest for r in own if r.form == form), default=math.nan)
                for form in ("plain", "gram")
            }
            rows.append(
                {
                    "format": precision, "normalisation": kind, "results": len(own),
                    "not finite": sum(math.isinf(r.largest) for r in own), "largest": tops,
                    "worst at": max(own, key=lambda r: r.largest).where,
                    "aligned": min(r.aligned for r in own),
                    "distance": max(
                        (r.distance for r in own if r.distance is not None), default=math.inf
                    ),
                }
            )  # fmt: skip
    shapes: dict[str, list[str]] = {"all": [], "narrow": []}
    for (m, n), formats, *_ in jobs:
        shapes["all" if len(formats) == len(ALL_FORMATS) else "narrow"].append(f"{m} x {n}")
    return {"rows": rows, "shapes": {k: list(dict.fromkeys(v)) for k, v in shapes.items()}}


# -- scale -----------------------------------------------------------------------------------


def scale_range(precision: str) -> tuple[int, int]:
    """Return exponents by which entries 1, 1.25, 1.5, 1.75 can be scaled exactly in a format."""
    form = format_of(precision)
    least = round(math.log2(form.smallest_normal * form.epsilon))
    return least + 2, math.frexp(form.largest)[1] - 1


def stored(a: np.ndarray, precision: str, library: str) -> Any:
    """Return an array stored in a format, or in a format with the same exponents."""
    if library == "torch":
        torch = importlib.import_module("torch")
        return torch.from_numpy(a.copy()).to(getattr(torch, precision))
    return a.astype(np.float32 if precision == "bfloat16" else precision)


def to_numpy(q: Any) -> np.ndarray:
    """Convert to double precision, from either library."""
    return q.double().numpy() if hasattr(q, "double") else np.asarray(q).astype(np.float64)


def scale_row(precision: str, library: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Measure how the factor of c A depends on c, over the whole range of a format."""
    rng = np.random.default_rng(3)
    a = rng.choice([1, 1.25, 1.5, 1.75], shape) * rng.choice([-1, 1], shape)
    options = default_options(precision, 15) | {"precision": precision}
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
    """Measure every format on NumPy, and on torch those with fast products."""
    shape = (24, 16) if quick else (96, 64)
    jobs = [("numpy", f) for f in ("bfloat16", "float16", "float32", "float64")]
    if importlib.util.find_spec("torch"):
        jobs += [("torch", f) for f in ("bfloat16", "float32")]
    return [scale_row(precision, library, shape) for library, precision in jobs]


# -- simulated and native --------------------------------------------------------------------


def units(x: np.ndarray, y: np.ndarray) -> float:
    """Return the largest difference in units in the last place of bfloat16.

    Entries smaller than the root of the mean square count with its unit: sums that cancel have the
    error of their terms.
    """
    size = np.maximum(np.abs(y.astype(np.float64)), np.sqrt(np.mean(y.astype(np.float64) ** 2)))
    unit = 2.0 ** np.floor(np.log2(size)) * format_of("bfloat16").epsilon
    return float(np.max(np.abs(x.astype(np.float64) - y) / unit))


def agreement(shape: tuple[int, int], seed: int = 0) -> list[dict[str, float]]:
    """Compare simulated and torch's bfloat16 after each of the default schedule's five steps.

    Each step is applied twice: to the simulated iterate, and to the iterate of torch.
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
    for step in default_of("bfloat16", 15).steps:
        same_start = iterate(t.float().numpy(), [step], simulated)
        x = iterate(x, [step], simulated)
        t = iterate(t, [step], native)
        row = {}
        for label, y in (("all", x), ("step", same_start)):
            z = t.float().numpy()
            row[f"{label}, equal"] = float(np.mean(y == z))
            row[f"{label}, units"] = units(y, z)
            row[f"{label}, distance"] = float(np.linalg.norm(y - z) / np.linalg.norm(z))
        rows.append(row)
    return rows


# -- other packages --------------------------------------------------------------------------


def pitfalls(peer: other.Peer) -> dict[str, str]:
    """Return results for large, tiny, zero and rank-one inputs, and whether the input is kept."""
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
        "input": "kept" if np.array_equal(before, to_numpy(given)) else "overwritten",
    }


def as_peer(precision: str, products: int, library: str = "torch") -> other.Peer:
    """Return polarlib's function for the arrays of another package."""
    options = default_options(precision, products)
    return other.Peer(
        f"polarlib, {precision}, {products} products", "", library, precision, precision, products,
        lambda x: polarlib.orthogonalize(x, form="plain", **options),
    )  # fmt: skip


def peer_rows(found: dict[str, other.Peer], n: int, aspects: Sequence[int]) -> list[dict]:
    """Measure other packages, and polarlib at the same products and format."""
    rows = []
    own: dict[tuple[str, int, str], tuple[np.ndarray, dict[str, str]]] = {}
    all_cases = {f: stress_cases(STRESS, f, n, aspects, 1) for f in FORMATS}

    def run(peer: other.Peer) -> tuple[np.ndarray, dict[str, str]]:
        cases = all_cases[peer.takes]
        return np.array([metrics(c, peer.result(c.matrix)) for c in cases]), pitfalls(peer)

    with other.eager():
        for peer in found.values():
            # float16 products are slow in torch on a CPU: polarlib runs in the dtype of its input.
            precision = peer.takes if peer.precision == "float16" else peer.precision
            key = precision, peer.products, peer.library
            if key not in own:
                own[key] = run(as_peer(*key))
            figures, falls = run(peer)
            rows.append(
                {
                    "name": peer.name, "source": peer.source, "products": peer.products,
                    "format": precision, "products in": peer.precision, "published": figures,
                    "default": own[key][0], "pitfalls": falls,
                    "spectra": [c.spectrum for c in all_cases[peer.takes]],
                }
            )  # fmt: skip
        for (precision, products, library), (figures, falls) in own.items():
            if products == 15:
                name = f"**polarlib**, {library}, {precision}"
                rows.append({"name": name, "default": figures, "pitfalls": falls})
    return rows
