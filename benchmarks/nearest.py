"""Distance to the unitary factor of every published set, the default and the adaptive schedule.

    python benchmarks/nearest.py [--json docs/data/nearest.json] [--markdown PAGE ...]
    python benchmarks/nearest.py --unseen FILE.npz [--json FILE]    # matrices of another training
    python benchmarks/nearest.py --fit                              # fit the rule's coefficients

Distance ||Q - U||_F / sqrt(rank A) of ``orthogonalize(a, precision=..., form="plain")``: U is the
unitary factor in double precision, without completion, of the matrix before it is rounded to the
format. The matrices are the ten bundled ones, gradients of eight more networks
(benchmarks/gradients.npz, made by analysis/gradients/others.py), and generated ones. Formats are
simulated on NumPy, as in benchmarks/stress.py. Nothing is timed.

The rule that chooses the tail of an adaptive schedule was fitted to these matrices. It is therefore
cross-validated: fitted without one network, or family of generated spectra, and measured on that
one; the same for times of training, and for kinds of layers.
"""

from __future__ import annotations

import functools
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import adaptive as design
import numpy as np
import stress_cases
import typer
from common import replace_part, table
from distance import exact
from rich.console import Console
from rich.progress import track

import polarlib
from polarlib.arrays.formats import format_of
from polarlib.arrays.ops import ops_of
from polarlib.arrays.rounded import rounded
from polarlib.engine.iterate import iterate
from polarlib.engine.normalise import normalised_with_gram
from polarlib.files import sample_matrices
from polarlib.files.whole import write_whole
from polarlib.testing import with_singular_values

HERE = Path(__file__).parent
STORED = HERE / "gradients.npz"
BUNDLED = HERE.parent / "polarlib" / "data" / "gradients.toml"
FORMATS = design.FORMATS
PRODUCTS = (15, 18, 20)
FITTED = 15  # products for which the rule is fitted
SIZE = 128  # columns of made matrices
# Places between the tails at which distances are taken for a fit, for each pair of tails.
BETWEEN = 4
# Schedules that are not published sets. The last is designed for each matrix from a sketch.
OURS = ("default", "adaptive", "for_matrix")
# Largest ratios to the distance of the closest set that count as "within 2 %" and "within 10 %".
NEAR, TENTH = 1.02, 1.1


# -- matrices --------------------------------------------------------------------------------


class Example(NamedTuple):
    """A matrix: its network or family, the kind of layer, and when in training it is taken."""

    name: str
    group: str
    layer: str
    time: str
    matrix: np.ndarray

    @property
    def made(self) -> bool:
        """Whether it is no gradient."""
        return not self.time


LAYERS = ("qkv", "attention_out", "mlp", "conv", "hidden", "head")


def _trained(facts: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> list[Example]:
    found = []
    for fact in facts:
        name, step = fact["name"], fact["step"]
        layer = next((kind for kind in LAYERS if kind in fact["layer"]), "other")
        time = "early" if step <= 10 else "middle" if step <= 100 else "late"
        matrix = arrays[name].astype(np.float32)
        found.append(Example(name, fact["network"], layer, time, matrix))
    return found


def bundled() -> list[Example]:
    """The ten matrices that the package brings."""
    facts = tomllib.loads(BUNDLED.read_text(encoding="utf-8"))["matrix"]
    return _trained(facts, sample_matrices())


def stored(path: Path = STORED) -> list[Example]:
    """Gradients that analysis/gradients/others.py wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    facts = tomllib.loads(path.with_suffix(".toml").read_text(encoding="utf-8"))["matrix"]
    return _trained(facts, arrays)


def spectra(n: int) -> dict[str, dict[str, np.ndarray]]:
    """Singular values of the made matrices, by family."""
    i = np.arange(1, n + 1)
    spikes = {
        f"{k} of 1, others {t:g}": np.r_[np.ones(k), np.full(n - k, t)]
        for k in (1, 4, 16)
        for t in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    }
    power = {f"i^-{p:g}": i ** -float(p) for p in (0.25, 0.5, 0.75, 1, 1.5, 2)}
    ends = (0.3, 0.1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
    geometric = {f"geometric, 1 to {e:g}": np.geomspace(1, e, n) for e in ends}
    low = (0.95, 0.8, 0.5, 0.3, 0.1, 0.02)
    bunched = {f"linear, 1 to {l:g}": np.linspace(1, l, n) for l in low}
    bunched |= {
        f"half 1, half {l:g}": np.r_[np.ones(n // 2), np.full(n - n // 2, l)] for l in (0.3, 0.1)
    }
    return {"spikes": spikes, "power law": power, "geometric": geometric, "bunched": bunched}


def gaussians(n: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Gaussian matrices of several shapes, and such with one large singular value added."""
    rng = np.random.default_rng(seed)
    spiked, plain = {}, {}
    for m, strength in (
        (2 * n, 1),
        (2 * n, 2),
        (2 * n, 5),
        (2 * n, 10),
        (2 * n, 30),
        (n, 2),
        (n, 10),
    ):
        g, u, v = rng.standard_normal((m, n)), rng.standard_normal(m), rng.standard_normal(n)
        spike = np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        spiked[f"{m} x {n}, spike {strength}"] = g + strength * np.linalg.norm(g, 2) * spike
    shapes = ((n // 2, n // 2), (n, n), (2 * n, 2 * n), (n * 5 // 4, n), (2 * n, n), (4 * n, n))
    for shape in (*shapes, (8 * n, n), (16 * n, n // 2)):
        plain["{} x {}".format(*shape)] = rng.standard_normal(shape)
    return {"spiked Gaussian": spiked, "Gaussian": plain}


def made(n: int = SIZE, seed: int = 3) -> list[Example]:
    """Made matrices: given singular values with random singular vectors, 2n x n, and Gaussian."""
    found = []
    for family, members in spectra(n).items():
        for k, (name, s) in enumerate(members.items()):
            found.append((family, name, with_singular_values(s, 2 * n, seed=100 * seed + k)))
    for family, members in gaussians(n, seed).items():
        found += [(family, f"{family} {name}", a) for name, a in members.items()]
    return [Example(name, family, "", "", a.astype(np.float32)) for family, name, a in found]


def deficient(n: int = SIZE) -> list[Example]:
    """Matrices with singular values of zero, which rounding lifts: in double precision."""
    half = np.r_[np.geomspace(1, 1e-2, n // 2), np.zeros(n - n // 2)]
    cases = {
        "half zero": half,
        "rank one": np.eye(n)[0],
        "rank ten": np.r_[np.ones(10), np.zeros(n - 10)],
    }
    return [
        Example(name, "zeros", "", "", with_singular_values(s, 2 * n, seed=1))
        for name, s in cases.items()
    ]


# -- distances -------------------------------------------------------------------------------


@functools.cache
def published(products: int) -> dict[str, polarlib.Schedule]:
    """Every published set of polar factors, of as many steps as so many products allow."""
    found = {}
    for name in polarlib.schedules():
        whole = polarlib.schedule(name)
        if whole.target != "polar":
            continue
        s, steps = None, 1
        while steps <= products:
            try:
                longer = polarlib.schedule(name, steps=steps)
            except ValueError:  # it has no more
                break
            if longer.matmuls > products:
                break
            s, steps = longer, steps + 1
        if s is not None:
            found[name] = s
    return found


def adaptive_steps(products: int) -> int:
    """Steps of the adaptive schedule of at most so many products."""
    return max(k for k in design.RANGES if 3 * k <= products)


def distance_to(a: np.ndarray) -> Callable[[np.ndarray], float]:
    """The distance of a factor, to four digits; infinite if it is not finite."""
    u, rank = exact(a)

    def distance(q: np.ndarray) -> float:
        found = np.linalg.norm(q.astype(np.float64) - u) / math.sqrt(rank)
        return float(f"{found:.4g}") if np.isfinite(found) else math.inf

    return distance


def distances(
    a: np.ndarray, precision: str, numbers: Sequence[int] = PRODUCTS
) -> dict[str, dict[str, float]]:
    """Distances for each number of products, of the sets, of the default and of the adaptive.

    For the products for which the rule is fitted also those of a design for this matrix.
    """
    known: dict[Any, float] = {}
    distance = distance_to(a)

    def of(key: Any, **options: Any) -> float:
        if key not in known:
            q = stress_cases.factor(a, precision, form="plain", **options)
            known[key] = distance(q)
        return known[key]

    rows = {}
    for products in numbers:
        row = {name: of((name, len(s)), schedule=s) for name, s in published(products).items()}
        row["default"] = of(("", products), **stress_cases.default_options(precision, products))
        steps = adaptive_steps(products)
        row["adaptive"] = of(("", -steps), schedule="adaptive", steps=steps)
        if products == FITTED and numbers == PRODUCTS:
            row["for_matrix"] = of("for_matrix", schedule=for_matrix(a.tobytes(), *a.shape))
        rows[str(products)] = row
    return rows


# The design is the same for all formats, which are measured one after another.
@functools.lru_cache(maxsize=256)
def for_matrix(entries: bytes, m: int, n: int) -> polarlib.Schedule:
    """The schedule for the sketched spectrum of a matrix of single precision."""
    a = np.frombuffer(entries, np.float32).reshape(m, n)
    return polarlib.design.for_matrix(a, FITTED // 3)


def best_published(row: dict[str, float]) -> tuple[float, str]:
    """The least distance among the published sets, and whose it is."""
    return min((d, name) for name, d in row.items() if name not in OURS)


# -- the rule --------------------------------------------------------------------------------


class Curve(NamedTuple):
    """Moments of the Gram matrix after the head, and distances at places between the tails."""

    mean: float
    deviation: float
    distances: np.ndarray


@functools.cache
def _tables(precision: str, steps: int) -> tuple[Any, np.ndarray]:
    first, tails = design.tables(precision, steps)
    return first, np.array(tails)


def between(tails: np.ndarray, place: float) -> list[tuple[float, ...]]:
    """The tail at a place, from 0 to the number of tails less one."""
    k = np.arange(len(tails))
    weights = np.maximum(0, 1 - abs(place - k))
    return [tuple(step) for step in np.tensordot(weights, tails, 1)]


def after_head(a: np.ndarray, precision: str, steps: int = FITTED // 3) -> tuple[np.ndarray, Any]:
    """The iterate after the head of a tall matrix, and the arithmetic of the format."""
    first, _ = _tables(precision, steps)
    ops = ops_of(a)
    low = rounded(ops, precision)
    z, g, step = normalised_with_gram(a, ops, low, low, "moments", 1.0, first[0])
    return iterate(z, (step, *first[1:]), low, gram=g), low


def moments(x: np.ndarray, low: Any) -> tuple[float, float]:
    """Mean and standard deviation of the eigenvalues of the Gram matrix, as rounded."""
    g = low.gram(x).astype(np.float64)
    n = len(g)
    mean = np.trace(g) / n
    return float(mean), math.sqrt(max(np.sum(g * g) / n - mean**2, 0.0))


def tall(a: np.ndarray) -> np.ndarray:
    """The matrix or its transpose."""
    return a if a.shape[0] >= a.shape[1] else np.ascontiguousarray(a.T)


def curve(a: np.ndarray, precision: str) -> Curve:
    """What a fit needs to know of a matrix."""
    a = tall(a)
    x, low = after_head(a, precision)
    _, tails = _tables(precision, FITTED // 3)
    places = np.linspace(0, len(tails) - 1, BETWEEN * (len(tails) - 1) + 1)
    distance = distance_to(a)
    found = [distance(iterate(x, between(tails, w), low)) for w in places]
    return Curve(*moments(x, low), np.array(found))


def place(rule: design.Rule, mean: Any, deviation: Any) -> Any:
    """Place among the tails that a rule takes, as a part of their range."""
    c0, c1, c2, c3 = rule.coefficients
    log = c0 + c1 * mean + c2 * deviation + c3 * deviation / np.maximum(mean, rule.floor)
    low, high = math.log(rule.lower), math.log(rule.upper)
    return (np.clip(log, low, high) - low) / (high - low)


def reference(a: np.ndarray, precision: str, steps: int) -> np.ndarray:
    """The result of the adaptive schedule, by the parts above: what the engine must agree with."""
    x, low = after_head(tall(a), precision, steps)
    _, tails = _tables(precision, steps)
    w = place(design.RULE, *moments(x, low)) * (len(tails) - 1)
    q = iterate(x, between(tails, float(w)), low)
    return q if a.shape[0] >= a.shape[1] else q.T


class Data(NamedTuple):
    """All that a fit needs: arrays (formats, matrices) and, of distances, (..., places)."""

    mean: np.ndarray
    deviation: np.ndarray
    distances: np.ndarray
    best: np.ndarray
    made: np.ndarray

    def at(self, rule: design.Rule) -> np.ndarray:
        """Distances that a rule gives."""
        last = self.distances.shape[-1] - 1
        w = place(rule, self.mean, self.deviation) * last
        k = np.minimum(w.astype(int), last - 1)[..., None]
        left, right = (np.take_along_axis(self.distances, k + i, -1)[..., 0] for i in (0, 1))
        part = w - k[..., 0]
        return (1 - part) * left + part * right


# Distances below about this are all alike to the fit: bfloat16 leaves no less.
FLOORS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-11}
# A loss of one tenth against the best published set, or the best place where that is behind it,
# counts this often beside the loss against the best place; of made matrices a little less.
LOSING, REGRET, MADE = 3.0, 0.3, 0.7
WITHIN = 0.01


def objective(data: Data, rule: design.Rule, weights: np.ndarray) -> float:
    """What the fit minimises, in logarithms of distances."""
    floors = np.log([2 * FLOORS[name] for name in FORMATS])[:, None]
    d, least = np.log(data.at(rule)), np.log(data.distances.min(-1))
    goal = np.maximum(np.log(data.best), least)
    loss = np.maximum(0, np.maximum(d, floors) - np.maximum(goal, floors) - WITHIN)
    regret = np.maximum(d, floors - 0.7) - np.maximum(least, floors - 0.7)
    total = LOSING * np.minimum(loss, 0.1) + loss + REGRET * np.minimum(regret, 0.5)
    return float((total.mean(0) * weights).sum() / weights.sum())


def fit(data: Data, used: np.ndarray, *, rounds: int = 40) -> design.Rule:
    """The rule's coefficients by differential evolution, then Nelder and Mead's search."""
    from scipy.optimize import differential_evolution, minimize

    weights = used * np.where(data.made, MADE, 1.0)
    of = lambda c: objective(data, design.RULE._replace(coefficients=tuple(c)), weights)  # noqa: E731
    found = differential_evolution(
        of,
        [(-12, 4), (-8, 8), (-12, 12), (-8, 8)],
        maxiter=rounds,
        popsize=10,
        seed=0,
        polish=False,
        tol=1e-6,
    )
    fine = minimize(of, found.x, method="Nelder-Mead", options={"maxiter": 800, "xatol": 1e-3})
    return design.RULE._replace(coefficients=tuple(round(float(c), 3) for c in fine.x))


def left_out(data: Data, keys: Sequence[str], rounds: int = 25) -> np.ndarray:
    """Distances of each matrix by a rule fitted without those of its key; "" is in every fit."""
    at = data.at(design.RULE)
    names = np.array(keys)
    for key in dict.fromkeys(k for k in keys if k):
        out = names == key
        at[:, out] = data.at(fit(data, ~out, rounds=rounds))[:, out]
    return at


# -- counting --------------------------------------------------------------------------------


def count(ours: Iterable[float], best: Iterable[float], precision: str) -> dict[str, Any]:
    """How near distances are to the best published ones."""
    d, b = np.array(list(ours)), np.array(list(best))
    q = d / b
    rounding = d <= 2 * format_of(precision).unit_roundoff
    small = d <= 2 * format_of("bfloat16").unit_roundoff
    return {
        "near": int(np.sum((q <= NEAR) | rounding)),
        "within a tenth": int(np.sum((q <= TENTH) | rounding)),
        "or small": int(np.sum((q <= TENTH) | small)),
        "of": len(q),
        "mean": round(float(q.mean()), 3),
        "geometric mean": round(float(np.exp(np.log(q).mean())), 3),
        "worst": round(float(q.max()), 2),
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The default and the adaptive schedule against the best published set, in figures."""
    found = []
    kinds = [k for k in ("gradients", "made") if any(r["kind"] == k for r in rows)]
    for products in PRODUCTS:
        for precision in FORMATS:
            for kind in kinds:
                group = [r for r in rows if (r["format"], r["kind"]) == (precision, kind)]
                parts = [r["distances"][str(products)] for r in group]
                best = [best_published(p)[0] for p in parts]
                for who in (name for name in OURS if name in parts[0]):
                    figures = count([p[who] for p in parts], best, precision)
                    found.append(
                        {"products": products, "format": precision, "kind": kind, "who": who}
                        | figures
                    )
    return found


def data_of(rows: Sequence[dict[str, Any]], curves: Sequence[Curve]) -> Data:
    """Rows of all formats, one format after another, with their curves."""
    shape = (len(FORMATS), -1)
    best = [best_published(r["distances"][str(FITTED)])[0] for r in rows]
    return Data(
        np.reshape([c.mean for c in curves], shape),
        np.reshape([c.deviation for c in curves], shape),
        np.reshape([c.distances for c in curves], (*shape, len(curves[0].distances))),
        np.reshape(best, shape),
        np.array([r["kind"] == "made" for r in rows[: len(rows) // len(FORMATS)]]),
    )


def validation(data: Data, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The rule as it is and as fitted without the matrices it is measured on."""
    ways: dict[str, Callable[[], np.ndarray]] = {
        "best place": lambda: data.distances.min(-1),
        "all matrices used": lambda: data.at(design.RULE),
        "network or family left out": lambda: left_out(data, [e.group for e in examples]),
        "time left out": lambda: left_out(data, [e.time for e in examples]),
        "kind of layer left out": lambda: left_out(data, [e.layer for e in examples]),
    }
    found = []
    for way, distances_of in track(ways.items(), description="cross-validation"):
        at = distances_of()
        for i, precision in enumerate(FORMATS):
            for kind, which in (("gradients", ~data.made), ("made", data.made)):
                if kind == "made" and way.startswith(("time", "kind")):
                    continue
                figures = count(at[i, which], data.best[i, which], precision)
                found.append({"way": way, "format": precision, "kind": kind} | figures)
    return found


# -- what is written -------------------------------------------------------------------------


def measured(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Distances of all examples, one format after another."""
    jobs = [(precision, e) for precision in FORMATS for e in examples]
    rows = []
    for precision, e in track(jobs, description="distances"):
        kind = "zeros" if e.group == "zeros" else "made" if e.made else "gradients"
        row = {"matrix": e.name, "group": e.group, "kind": kind, "format": precision}
        numbers = (FITTED,) if kind == "zeros" else PRODUCTS
        rows.append(row | {"distances": distances(e.matrix, precision, numbers)})
    return rows


# Headings and values of the tables, where they differ from those of the data.
HEADINGS = {"who": "schedule", "way": "rule"}
VALUES = {"made": "generated"}


def counts_table(counts: Sequence[dict[str, Any]], *keys: str) -> str:
    """Return a table of the figures of `count` in Markdown."""
    header = [*(HEADINGS.get(k, k) for k in keys), "within 2 %", "within 10 %", "or below 2⁻⁷"]
    header += ["mean ratio", "geometric mean", "worst"]
    lines = [
        [
            *(str(VALUES.get(f[k], f[k])) for k in keys),
            f"{f['near']} of {f['of']}",
            f"{f['within a tenth']} of {f['of']}",
            f"{f['or small']} of {f['of']}",
            *(f"{f[k]:.3f}" for k in ("mean", "geometric mean")),
            f"{f['worst']:.2f}",
        ]
        for f in counts
    ]
    return table(header, lines)


def short_table(counts: Sequence[dict[str, Any]]) -> str:
    """Return the table of the guide: gradients, at the products for which the rule is fitted."""
    of = {"products": FITTED, "kind": "gradients"}
    rows = [f for f in counts if of.items() <= f.items()]
    return counts_table(rows, "products", "format", "who")


def matrices_table(rows: Sequence[dict[str, Any]], precision: str) -> str:
    """Return one line per matrix: the closest set, the default and the adaptive schedule."""
    lines = []
    for r in rows:
        if r["format"] != precision:
            continue
        fifteen, eighteen = r["distances"]["15"], r["distances"]["18"]
        best, name = best_published(fifteen)
        later, other = best_published(eighteen)
        figures = (best, fifteen["default"], fifteen["adaptive"], later, eighteen["adaptive"])
        a, b, c, d, e = (f"{v:.4f}" for v in figures)
        lines.append([r["group"], r["matrix"], f"{a} `{name}`", b, c, f"{d} `{other}`", e])
    header = ["group", "matrix", "15 products: closest set", "default", "adaptive"]
    return table([*header, "18 products: closest set", "adaptive"], lines)


def zeros_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of rank-deficient matrices, 15 products."""
    names = ("cubic5", "polar_express", "you", "default", "adaptive")
    lines = [
        [r["format"], r["matrix"], *(f"{r['distances']['15'][n]:.4f}" for n in names)]
        for r in rows
        if r["kind"] == "zeros"
    ]
    return table(["format", "matrix", *(f"`{n}`" for n in names)], lines)


def write_pages(pages: Sequence[Path], figures: dict[str, Any]) -> None:
    """Put each table into the page that has its markers."""
    rows = figures["rows"]
    columns = ("products", "format", "kind", "who")
    parts = {
        "short": short_table(figures["summary"]),
        "summary": counts_table(figures["summary"], *columns),
        "validation": counts_table(figures["validation"], "way", "format", "kind"),
        "matrices": matrices_table([r for r in rows if r["kind"] != "zeros"], "bfloat16"),
        "zeros": zeros_table(rows),
    }
    if "unseen" in figures:
        parts["unseen"] = counts_table(figures["unseen"], *columns)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for name in (n for n in parts if f"<!-- begin {n} -->" in text):
            replace_part(page, name, parts[name])


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures as JSON, one line per row."""
    text = ",\n".join(
        f"{json.dumps(key)}: [\n" + ",\n".join(map(json.dumps, part)) + "\n]"
        for key, part in figures.items()
    )
    write_whole(path, lambda file: file.write(f"{{\n{text}\n}}\n".encode()))


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    markdown: Annotated[list[Path] | None, typer.Option(help="Pages for the tables.")] = None,
    unseen: Annotated[
        Path | None, typer.Option(help="Also measure on these gradients, which no fit used.")
    ] = None,
    fit_rule: Annotated[bool, typer.Option("--fit", help="Fit the rule, and stop.")] = False,
    measure: Annotated[
        bool, typer.Option(help="Measure; otherwise use the figures of --json.")
    ] = True,
) -> None:
    """Measure, cross-validate, and write."""
    console = Console(highlight=False, soft_wrap=True)
    if not measure:
        if json_file is None or not markdown:
            raise typer.BadParameter("--no-measure needs --json and --markdown; give both")
        write_pages(markdown, json.loads(json_file.read_text(encoding="utf-8")))
        return
    used = [*bundled(), *stored(), *made()]
    rows = measured(used)
    jobs = [(precision, e.matrix) for precision in FORMATS for e in used]
    curves = [curve(a, precision) for precision, a in track(jobs, description="tails")]
    data = data_of(rows, curves)
    if fit_rule:
        rule = fit(data, np.ones(len(used), bool), rounds=60)
        console.print(rule)
        return
    figures = {"summary": summary(rows), "validation": validation(data, used)}
    if unseen is not None:
        others = [*stored(unseen), *made(96, 11)]
        figures["unseen"] = summary(measured(others))
    figures["rows"] = rows + measured(deficient())
    for key in ("summary", "validation", "unseen"):
        for f in figures.get(key, []):
            console.print(key, *f.values())
    if json_file is not None:
        write_json(json_file, figures)
    if markdown:
        write_pages(markdown, figures)


if __name__ == "__main__":
    typer.run(main)
