"""Write the tables of docs/guide/norms.md and docs/guide/optimizers.md, and a figure.

    python docs/make_norms.py

replaces the text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` on both pages, and makes
docs/figures/unit_balls.png. Each formula of a table has a function that computes it; the function
is compared with the library before anything is written. tests/norms/test_norms_page.py checks that
the pages are up to date and that every norm has a row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polarlib import norms, plot
from polarlib.files.whole import write_whole
from polarlib.norms.base import Scaled
from polarlib.norms.convolutions import Convolution
from polarlib.norms.mixed import Mixed
from polarlib.norms.modules import Modular
from polarlib.norms.sums import MinkowskiSum
from polarlib.norms.unitary import Unitary

GUIDE = Path(__file__).parent / "guide"
FIGURE = Path(__file__).parent / "figures" / "unit_balls.png"

EXAMPLE = np.diag([4.0, 2.0, 1.0])
EXAMPLE_OF_MAPS = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
ALPHA, ETA = 0.5, 0.25  # of the mixed norms in the table
# Norms that share the row of another one.
SAME = {"minkowski_sum": "f_muon", "neon": "nuclear", "s_muon": "s_fanion"}
SHAPES = [(1024, 1024), (4096, 1024), (1024, 4096)]


class Row(NamedTuple):
    """A norm in the table: its constructor call, its formulas, and functions that check them.

    `given` converts a matrix to the argument of the norm, and `matrix` converts it back.
    """

    code: str
    value: str
    dual: str
    lmo: str
    optimizers: str
    dual_of: Callable[[np.ndarray], float]
    lmo_of: Callable[[np.ndarray], np.ndarray]
    given: Callable[[np.ndarray], Any] = np.asarray
    matrix: Callable[[Any], np.ndarray] = np.asarray


def spectrum(g: np.ndarray) -> np.ndarray:
    return np.linalg.svd(g, compute_uv=False)


def mapped(g: np.ndarray, f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    u, s, vh = np.linalg.svd(g, full_matrices=False)
    return (u * f(s)) @ vh


def first(s: np.ndarray, k: int) -> np.ndarray:
    return (np.arange(s.size) < k) * 1.0


def size(g: np.ndarray) -> float:
    return math.sqrt(float((g * g).sum()))


def one_hot(g: np.ndarray, axis: int | None) -> np.ndarray:
    a = np.abs(g)
    return np.sign(g) * (a == a.max(axis=axis, keepdims=True))


def columns(g: np.ndarray) -> np.ndarray:
    return np.sqrt((g * g).sum(axis=0, keepdims=True))


def mixed(g: np.ndarray, k: int | None, other: np.ndarray) -> np.ndarray:
    top = mapped(g, lambda s: first(s, s.size if k is None else k))
    return ALPHA * top + (1 - ALPHA) * other


def rows() -> list[Row]:
    """Return the rows of all norms; k = 2, p = 4, alpha and eta as above."""
    return [
        Row(
            "spectral()",
            "σ₁",
            "Σ σᵢ",
            "U Vᴴ",
            "Muon; Shampoo without accumulation; with `sharp`, PolarGrad",
            lambda g: spectrum(g).sum(),
            lambda g: mapped(g, np.ones_like),
        ),
        Row(
            "rms_to_rms(m, n)",
            "√(n/m) σ₁",
            "√(m/n) Σ σᵢ",
            "√(m/n) U Vᴴ",
            "Scion's hidden layers, Modula's Linear",
            lambda g: math.sqrt(g.shape[0] / g.shape[1]) * spectrum(g).sum(),
            lambda g: math.sqrt(g.shape[0] / g.shape[1]) * mapped(g, np.ones_like),
        ),
        Row(
            "nuclear()",
            "Σ σᵢ",
            "σ₁",
            "u₁ v₁ᴴ",
            "Neon; the ascent step of ν-SAM",
            lambda g: spectrum(g)[0],
            lambda g: mapped(g, lambda s: first(s, 1)),
        ),
        Row(
            "frobenius()",
            "√(Σ σᵢ²)",
            "itself",
            "G/‖G‖_F",
            "normalised SGD; with `sharp`, SGD",
            size,
            lambda g: g / size(g),
        ),
        Row(
            "schatten(4)",
            "(Σ σᵢ⁴)^¼",
            "(Σ σᵢ^q)^(1/q), q = 4/3",
            "U σ^(q−1) Vᴴ / ‖σ‖_q^(q−1)",
            "between SGD and Muon",
            lambda g: (spectrum(g) ** (4 / 3)).sum() ** 0.75,
            lambda g: mapped(g, lambda s: (s / (s ** (4 / 3)).sum() ** 0.75) ** (1 / 3)),
        ),
        Row(
            "ky_fan(2)",
            "Σ_{i≤k} σᵢ",
            "max(σ₁, Σ σᵢ/k)",
            "u₁ v₁ᴴ if σ₁ ≥ Σ σᵢ/k, else U Vᴴ/k",
            "",
            lambda g: max(spectrum(g)[0], spectrum(g).sum() / 2),
            lambda g: mapped(
                g, lambda s: first(s, 1) if s[0] >= s.sum() / 2 else np.full_like(s, 0.5)
            ),
        ),
        Row(
            "fanion(2)",
            "max(σ₁, Σ σᵢ/k)",
            "Σ_{i≤k} σᵢ",
            "U_k V_kᴴ",
            "Fanion-k; what Dion approximates",
            lambda g: spectrum(g)[:2].sum(),
            lambda g: mapped(g, lambda s: first(s, 2)),
        ),
        Row(
            "ky_fan_dual(2, 2)",
            "spectral k-support norm",
            "√(Σ_{i≤k} σᵢ²)",
            "U_k σ_k V_kᴴ / ‖σ_{1:k}‖₂",
            "SGD of rank k",
            lambda g: math.sqrt((spectrum(g)[:2] ** 2).sum()),
            lambda g: mapped(g, lambda s: s * first(s, 2) / math.sqrt((s[:2] ** 2).sum())),
        ),
        Row(
            "f_muon(0.5)",
            "root of one quadratic equation",
            "α Σ σᵢ + (1−α) ‖G‖_F",
            "α U Vᴴ + (1−α) G/‖G‖_F",
            "F-Muon",
            lambda g: ALPHA * spectrum(g).sum() + (1 - ALPHA) * size(g),
            lambda g: mixed(g, None, g / size(g)),
        ),
        Row(
            "f_fanion(2, 0.5)",
            "by bisection",
            "α Σ_{i≤k} σᵢ + (1−α) ‖G‖_F",
            "α U_k V_kᴴ + (1−α) G/‖G‖_F",
            "F-Fanion-k",
            lambda g: ALPHA * spectrum(g)[:2].sum() + (1 - ALPHA) * size(g),
            lambda g: mixed(g, 2, g / size(g)),
        ),
        Row(
            "f_neon(0.5)",
            "by bisection",
            "α σ₁ + (1−α) ‖G‖_F",
            "α u₁ v₁ᴴ + (1−α) G/‖G‖_F",
            "F-Neon",
            lambda g: ALPHA * spectrum(g)[0] + (1 - ALPHA) * size(g),
            lambda g: mixed(g, 1, g / size(g)),
        ),
        Row(
            "s_fanion(2, 0.5, 0.25)",
            "no closed form",
            "α Σ_{i≤k} σᵢ + (1−α) η Σ abs(gᵢⱼ)",
            "α U_k V_kᴴ + (1−α) η sign(G)",
            "S-Fanion-k; all k: S-Muon",
            lambda g: ALPHA * spectrum(g)[:2].sum() + (1 - ALPHA) * ETA * np.abs(g).sum(),
            lambda g: mixed(g, 2, ETA * np.sign(g)),
        ),
        Row(
            "lp(inf)",
            "max abs(gᵢⱼ)",
            "Σ abs(gᵢⱼ)",
            "sign(G)",
            "signSGD, Lion, Adam without averages; Scion's Sign",
            lambda g: np.abs(g).sum(),
            np.sign,
        ),
        Row(
            "lp(1)",
            "Σ abs(gᵢⱼ)",
            "max abs(gᵢⱼ)",
            "the sign of the largest entry, in its place",
            "greedy coordinate descent",
            lambda g: np.abs(g).max(),
            lambda g: one_hot(g, None),
        ),
        Row(
            "induced(1, 2)",
            "largest column ‖·‖₂",
            "Σⱼ ‖colⱼ‖₂",
            "columns divided by their ‖·‖₂",
            "SCALE; Scion's ColNorm",
            lambda g: columns(g).sum(),
            lambda g: g / columns(g),
        ),
        Row(
            "induced(2, inf)",
            "largest row ‖·‖₂",
            "Σᵢ ‖rowᵢ‖₂",
            "rows divided by their ‖·‖₂",
            "Scion's RowNorm; Modula's Embed, up to scale",
            lambda g: columns(g.T).sum(),
            lambda g: g / columns(g.T).T,
        ),
        Row(
            "induced(1, 1)",
            "largest column ‖·‖₁",
            "Σⱼ maxᵢ abs(gᵢⱼ)",
            "signed one-hot columns",
            "",
            lambda g: np.abs(g).max(axis=0).sum(),
            lambda g: one_hot(g, 0),
        ),
        Row(
            "convolution(spectral(), spatial=1)",
            "σ₁ of the kernel as a matrix, out × (in · taps)",
            "Σ σᵢ of it",
            "its U Vᴴ, as a kernel",
            "Muon on kernels",
            lambda g: spectrum(g).sum(),
            lambda g: mapped(g, np.ones_like),
            given=lambda g: g[:, None, :],
            matrix=lambda w: w[:, 0, :],
        ),
        Row(
            "modular([spectral(), lp(inf)], [1, 2])",
            "max_l s_l ‖W_l‖_l",
            "Σ_l ‖G_l‖_l† / s_l",
            "the list of lmo_l(G_l) / s_l",
            "Modula; Scion: a norm for each layer",
            lambda g: spectrum(g[:1]).sum() + np.abs(g[1:]).sum() / 2,
            lambda g: np.concatenate([mapped(g[:1], np.ones_like), np.sign(g[1:]) / 2]),
            given=lambda g: [g[:1], g[1:]],
            matrix=np.concatenate,
        ),
    ]


class MapRow(NamedTuple):
    """A function of matrices that is not an LMO: its call, meaning, source, and a reference."""

    code: str
    meaning: str
    source: str
    wanted: Callable[[np.ndarray], np.ndarray]


def map_rows() -> list[MapRow]:
    """Return the rows of all spectral functions and functions of rows; r is a NumPy generator."""
    return [
        MapRow(
            "spectral_power(g, -0.5)",
            "f(σ) = (σ/M)ᵉ, M the power mean of σ of order q = 1 + e",
            "Freon, e = 1 − 2c (arXiv 2605.11181)",
            lambda g: mapped(g, lambda s: (s / np.mean(s**0.5) ** 2) ** -0.5),
        ),
        MapRow(
            "random_spectrum(g, r)",
            "f(σ) drawn from (0, 1], or by a sampler",
            "Kaon (the same)",
            lambda g: mapped(g, lambda s: 1 - np.random.default_rng(0).random(s.size)),
        ),
        MapRow(
            "scrambled_spectrum(g, steps=1)",
            "f(σ): by default five times x ← 4.1 x (1 − x²)² from σ/‖σ‖₂, over 1.175",
            "Kaon (the same)",
            lambda g: mapped(g / size(g), lambda s: 4.1 * s * (1 - s * s) ** 2 / 1.175),
        ),
        MapRow(
            "polargrad(g)",
            "f(σ) = Σ σᵢ",
            "PolarGrad (arXiv 2505.21799)",
            lambda g: mapped(g, lambda s: np.full_like(s, s.sum())),
        ),
        MapRow(
            "spectral_clip(g, 3.0, low=1.5)",
            "f(σ) = min(max(σ, low), high); low = 0 by default: the projection to a spectral ball",
            "Emerging-Optimizers' `spectral_clip` without its iterations; MuCon (arXiv 2605.26459)",
            lambda g: mapped(g, lambda s: np.clip(s, 1.5, 3)),
        ),
        MapRow(
            'normalise(g, "rows")',
            "gᵢ / ‖gᵢ‖₂, 0 for a zero row; no factor of the shape, no epsilon",
            "MuonEq R before the polar factor (arXiv 2603.28254), NorMuon after it (2510.05491)",
            lambda g: g / columns(g.T).T,
        ),
        MapRow(
            'normalise(g, "columns")',
            "the same of columns",
            "MuonEq C before the polar factor, Muon+ after it (arXiv 2602.21545)",
            lambda g: g / columns(g),
        ),
        MapRow(
            "row_balanced(g)",
            "polar(D G); D ← D √(min(m, n) / (m ‖row of polar(D G)‖²)), twice, from 1/‖gᵢ‖",
            "Aurora, for m > n (arXiv 2606.27715)",
            two_balanced,
        ),
    ]


def two_balanced(g: np.ndarray) -> np.ndarray:
    m, n = g.shape
    x = g / columns(g.T).T
    u = mapped(x, np.ones_like)
    return mapped(x * math.sqrt(min(m, n) / m) / columns(u.T).T, np.ones_like)


def map_of(row: MapRow, g: np.ndarray) -> np.ndarray:
    """Call the function of a row."""
    names = {name: getattr(norms, name) for name in norms.__all__}
    result: np.ndarray = eval(row.code, {**names, "g": g, "r": np.random.default_rng(0)})
    return result


def check_map(row: MapRow) -> None:
    """Compare a function with its reference, on wide and tall matrices."""
    for seed, shape in enumerate([(5, 4), (3, 6), (4, 4)]):
        g = np.random.default_rng(seed).standard_normal(shape)
        np.testing.assert_allclose(map_of(row, g), row.wanted(g), atol=1e-12)


def made(row: Row, shape: tuple[int, int]) -> norms.Norm:
    """Return the norm of a row for matrices of a shape."""
    m, n = shape
    names = {name: getattr(norms, name) for name in norms.__all__}
    return eval(row.code, {**names, "m": m, "n": n, "inf": math.inf})


def cost(n: norms.Norm) -> str:
    """Return the cost of an lmo, from the class of the norm."""
    if isinstance(n, Mixed):
        return "one pass"
    if isinstance(n, MinkowskiSum):
        return " + ".join(cost(term) for _, term in n.terms)
    if isinstance(n, Unitary):
        if n.k == 1 and not n.of_dual:
            return "polar factor"
        return f"{n.k} triplet{'s' * (n.k > 1)}" if n.of_dual and n.k else "SVD"
    if isinstance(n, Modular):
        return " + ".join(map(cost, n.norms))
    if isinstance(n, Scaled | Convolution):
        return cost(n.norm)
    raise TypeError(f"no cost is known of {n!r}")


def check(row: Row) -> None:
    """Compare the formulas of a row with the library, on wide and tall matrices."""
    for seed, shape in enumerate([(5, 4), (3, 6), (4, 4)]):
        g = np.random.default_rng(seed).standard_normal(shape)
        n = made(row, shape)
        x = row.given(g)
        np.testing.assert_allclose(n.dual_norm(x), row.dual_of(g), rtol=1e-12)
        np.testing.assert_allclose(row.matrix(n.lmo(x)), row.lmo_of(g), atol=1e-12)


def number(x: float) -> str:
    return f"{x:.4g}"


def table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def norm_table() -> str:
    """Return one line per norm; the last columns are computed."""
    body = []
    for row in rows():
        check(row)
        n, x = made(row, EXAMPLE.shape), row.given(EXAMPLE)
        try:
            value = number(float(n(x)))
        except NotImplementedError:
            value = "–"
        try:
            n.project(x)
            project = "yes"
        except NotImplementedError:
            project = "–"
        t = ", ".join(number(float(v)) for v in np.diag(row.matrix(n.lmo(x))))
        body.append(
            [
                f"`{row.code}`",
                row.value,
                row.dual,
                row.lmo,
                row.optimizers,
                cost(n),
                project,
                f"{value}; {number(float(n.dual_norm(x)))}; ({t})",
            ]
        )
    head = ["norm", "value", "dual norm", "lmo", "optimizers", "cost of lmo", "project", "example"]
    return table(head, body)


def scale_table() -> str:
    """Return the scales by name for three shapes."""
    body = [
        [f"`{rule}`", *(number(norms.update_scale(m, n, rule)) for m, n in SHAPES)]
        for rule in norms.UPDATE_SCALES
    ]
    return table(["rule", *(f"{m} × {n}" for m, n in SHAPES)], body)


def mup_table() -> str:
    """Return the exponents of the maximal update parametrization."""
    body = [
        [f"{optimizer}, {layer}", *(number(x) for x in norms.mup(layer, optimizer))]
        for optimizer, layers in norms.MUP.items()
        for layer in layers
    ]
    return table(["", "a", "b", "c"], body)


def map_table() -> str:
    """Return one line per function; the example is computed."""
    body = []
    for row in map_rows():
        check_map(row)
        t = map_of(row, EXAMPLE_OF_MAPS)
        sizes = [", ".join(map(number, values)) for values in (spectrum(t), columns(t.T).ravel())]
        body.append([f"`{row.code}`", row.meaning, row.source, *sizes])
    return table(["function", "meaning", "source", "singular values", "norms of rows"], body)


TABLES = {
    "norms.md": {"norms": norm_table},
    "optimizers.md": {"maps": map_table, "scales": scale_table, "mup": mup_table},
}


def filled(page: str, name: str) -> str:
    """Return the text of the page of a name with regenerated tables."""
    for part, make in TABLES[name].items():
        marks = f"<!-- begin {part} -->", f"<!-- end {part} -->"
        pieces = re.split("|".join(marks), page)
        if len(pieces) != 3:
            raise ValueError(f"{name} must have one pair of {marks[0]} and {marks[1]}")
        page = f"{pieces[0]}{marks[0]}\n{make()}\n{marks[1]}{pieces[2]}"
    return page


def figure() -> None:
    """Draw six unit balls in two panels."""
    from matplotlib.figure import Figure

    with plot.style("page"):
        drawing = Figure(figsize=(7.0, 4.1), layout="compressed")
        left, right = drawing.subplots(1, 2)
        for n in (norms.spectral(), norms.nuclear(), norms.frobenius()):
            plot.unit_ball(n, left)
        plot.unit_ball(norms.f_muon(0.5), right, label="f_muon(0.5)")
        plot.unit_ball(norms.schatten(1.5), right)
        plot.unit_ball(norms.s_fanion(1, 0.5, 0.5), right, label="s_fanion(1, 0.5, 0.5)")
        FIGURE.parent.mkdir(exist_ok=True)
        plot.save(left, FIGURE, dpi=120)


def main() -> None:
    """Write the pages and the figure."""
    for name in TABLES:
        path = GUIDE / name
        text = filled(path.read_text(encoding="utf-8"), name).encode()
        write_whole(path, lambda file, text=text: file.write(text))
    figure()


if __name__ == "__main__":
    main()
