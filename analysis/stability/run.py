"""Which iterations are backward stable: the condition on the mapping function, and what happens."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import TWO_COLUMNS, Output, main, panels

import polarlib
from polarlib import design, plot
from polarlib.testing import with_singular_values

EPS = 2.0**-52
CONDITION = 1e15
STEPS = 50  # of degree 5, until they have converged from 1e-15
NEWTON_SCHULZ = (1.5, -0.5)
# Room for rounding above the interval, without which the unguarded steps overflow.
SAFETY = 1e-10
METHODS = ("qdwh", "zolotarev", "newton", "minimax", "svd")
Map = Callable[[np.ndarray], np.ndarray]


def growth(f: Map, lower: float, upper: float, points: np.ndarray | None = None) -> float:
    """Least d with f(x) / max f >= (x / upper) / d on the interval, by samples and `points`."""
    given = np.zeros(0) if points is None else points[(lower < points) & (points < upper)]
    grids = (np.geomspace(lower, upper, 20001), np.linspace(lower, upper, 20001), given)
    x = np.concatenate(grids)
    y = f(x)
    return float((x / upper / (y / y.max())).max())


def odd(step: tuple[float, ...]) -> Map:
    """The odd polynomial of ascending coefficients."""

    def value(x: np.ndarray) -> np.ndarray:
        return x * np.polynomial.polynomial.polyval(x * x, step)

    return value


def turning_points(step: tuple[float, ...]) -> np.ndarray:
    """Where the derivative of an odd polynomial is zero, positive and ascending."""
    slopes = [(2 * i + 1) * c for i, c in enumerate(step)]
    squares = np.polynomial.polynomial.polyroots(slopes)
    return np.sqrt(np.sort(squares[np.isreal(squares) & (squares.real > 0)].real))


def worst_growth(s: polarlib.Schedule) -> float:
    """Largest d of the steps of a schedule, each on the image of those before."""
    lower, upper = s.lower, s.upper
    found = []
    for k, step in enumerate(s.steps, 1):
        found.append(growth(odd(step), lower, upper, turning_points(step)))
        lower, upper = s.truncate(k).image()
    return max(found)


def rational_growth(r: int) -> float:
    """The same of Zolotarev's steps with r poles; r = 1 is QDWH."""
    s = design.zolotarev(r, 1 / CONDITION)
    lower, upper = s.lower, 1.0
    found = []
    for k, step in enumerate(s.steps, 1):
        found.append(growth(replace(s, steps=(step,), lower=lower, upper=upper), lower, upper))
        lower, upper = s.truncate(k).image()
    return max(found)


def scaled_newton(lower: float) -> Map:
    """Newton's step with the best scaling for singular values in [lower, 1]."""
    zeta = lower**-0.5
    return lambda x: (zeta * x + 1 / (zeta * x)) / 2


def backward_error(a: np.ndarray, u: np.ndarray) -> float:
    h = u.T @ a
    return float(np.linalg.norm(a - u @ (h + h.T) / 2) / np.linalg.norm(a))


def cubic(top: float) -> polarlib.Schedule:
    """Newton-Schulz for singular values up to `top`."""
    steps = 2 + math.ceil(math.log(2 * CONDITION / min(1.0, 3 - top**2)) / math.log(1.5))
    return polarlib.Schedule(
        steps=(NEWTON_SCHULZ,) * (steps + 8),
        lower=top / CONDITION,
        upper=top,
        normalisation="none",
        name="newton_schulz_3",
    )


def study(out: Output, quick: bool) -> None:
    n, seeds = (40, 1) if quick else (200, 4)
    matrices = [
        with_singular_values(np.geomspace(1, 1 / CONDITION, n), seed=seed) for seed in range(seeds)
    ]
    rows: list[tuple[str, str, float, float]] = []  # family, parameter, d, worst backward error

    def tried(family: str, parameter: str, d: float, errors: list[float]) -> None:
        rows.append((family, parameter, d, max(errors)))

    exact = {"qdwh": rational_growth(1), "zolotarev": rational_growth(8)}
    exact |= {"newton": growth(scaled_newton(1 / CONDITION), 1 / CONDITION, 1.0)}
    falls = growth(odd(NEWTON_SCHULZ), 1e-15, 1.0)
    out.figure("d of QDWH, Zolotarev, scaled Newton, Newton-Schulz to 1", [*exact.values(), falls])
    fell_back = 0
    for method in METHODS:
        found = [polarlib.polar(a, method=method) for a in matrices]
        name = "polar(minimax)" if method == "minimax" else method
        tried(name, "", exact.get(method, math.nan), [r.backward_error for r in found])
        if method != "svd":
            out.figure(f"backward error, polar(method={method!r})", rows[-1][3])
        fell_back += sum(r.method != method for r in found)
    out.figure("fell back to the SVD", fell_back)
    tops = [1.0, 1.7, math.sqrt(3) * (1 - 1e-6)]
    if not quick:
        tops = [1.0, 1.5, *(math.sqrt(3) * (1 - 10.0**-k) for k in range(2, 11))]
    for top in tops:
        s = cubic(top)
        run = [polarlib.orthogonalize(top * a, schedule=s, form="plain") for a in matrices]
        errors = [backward_error(a, u) for a, u in zip(matrices, run, strict=True)]
        tried("newton-schulz", f"{top:.12g}", worst_growth(s.truncate(1)), errors)
    errors_of = {parameter: e for family, parameter, _, e in rows if family == "newton-schulz"}
    out.figure("backward error, Newton-Schulz from norm 1", errors_of["1"])
    out.figure(
        "backward error, Newton-Schulz from norm sqrt(3) (1 - 1e-6)",
        errors_of[f"{math.sqrt(3) * (1 - 1e-6):.12g}"],
    )
    by = {}
    for cushion in (0.0, 0.1) if quick else (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3):
        s = design.greedy(1 / CONDITION, [5] * STEPS, cushion=cushion, safety=SAFETY)
        # A singular value where the first step is least, or as the spectrum has it.
        least = float(turning_points(s.steps[0])[-1])
        for family, special in (("minimax", least), ("minimax, geometric", None)):
            errors = []
            for seed in range(seeds):
                sigma = np.geomspace(1, 1 / CONDITION, n)
                if special is not None:
                    sigma[np.argmin(np.abs(sigma - special))] = special
                a = with_singular_values(sigma, seed=seed)
                u = polarlib.orthogonalize(a, schedule=s, normalisation="none", form="plain")
                errors.append(backward_error(a, u))
            tried(family, f"{cushion:g}", worst_growth(s.truncate(24)), errors)
            by[family, cushion] = max(errors)
    out.figure("backward error, minimax without cushion, at worst", by["minimax", 0.0])
    out.figure("backward error, minimax without cushion", by["minimax, geometric", 0.0])
    out.figure("backward error, minimax with cushion 0.1", by["minimax, geometric", 0.1])
    out.figure("backward error, minimax with cushion 0.1, at worst", by["minimax", 0.1])
    judged = [(d, e) for _, _, d, e in rows if d == d]
    out.figure("backward error over eps d, all iterations", max(e / (EPS * d) for d, e in judged))
    out.table("backward_errors", ["iteration", "parameter", "d", "backward error"], rows)
    draw(out, rows, n)
    out.note(
        "The condition of Nakatsukasa and Higham: with the mapping function f of a step, X's "
        "singular values in (0, ‖X‖], f(x)/max f must not be much below x/‖X‖; d is the factor by "
        "which it is below at worst. A step must also be computed with a small mixed error, which "
        "all steps here are."
    )


def draw(out: Output, rows: list[tuple[str, str, float, float]], n: int) -> None:
    fig, axes = panels(1, 2, width=TWO_COLUMNS, height=3.3)
    top = math.sqrt(3) * (1 - 1e-6)
    lower = 1 / CONDITION
    guarded = design.greedy(lower, [5], cushion=0.1)
    bare = design.greedy(lower, [5])
    maps = (
        ("QDWH", design.zolotarev(1, lower).truncate(1), 1.0, plot.BLUE, "-"),
        ("Newton–Schulz, norm 1", odd(NEWTON_SCHULZ), 1.0, plot.GREEN, "--"),
        (r"Newton–Schulz, norm near $\sqrt{3}$", odd(NEWTON_SCHULZ), top, plot.VERMILLION, "--"),
        ("minimax, cushion 0.1", odd(guarded.steps[0]), 1.0, plot.SKY, "-."),
        ("minimax, no cushion", odd(bare.steps[0]), 1.0, plot.PURPLE, ":"),
    )
    x = np.linspace(1e-3, 1, 20001)
    for label, f, upper, colour, line in maps:
        y = f(x * upper)
        wide = 3.2 if label == "QDWH" else 1.3  # the line d = 1 is on top of it
        axes[0].semilogy(x, y / y.max(), color=colour, linestyle=line, linewidth=wide, label=label)
    axes[0].semilogy(x, x, color=plot.INK, linewidth=0.7, label=r"$x / \|X\|_2$ ($d = 1$)")
    axes[0].set(
        xlabel=r"singular value over the largest, $x / \|X\|_2$",
        ylabel=r"$f(x) / \max f$ of the first step",
        ylim=(1e-7, 2),
    )
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    looks = (
        ("newton-schulz", "Newton–Schulz", plot.VERMILLION, "s"),
        ("minimax", "minimax, degree 5", plot.PURPLE, "D"),
        ("qdwh", "QDWH", plot.BLUE, "o"),
        ("zolotarev", "Zolotarev", plot.ORANGE, "v"),
        ("newton", "scaled Newton", plot.GREEN, "^"),
    )
    handles = []
    for family, label, colour, marker in looks:
        points = [(d, e) for name, _, d, e in rows if name == family]
        handles += axes[1].loglog(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=4.5,
            linestyle="none",
            label=label,
        )
    d = np.geomspace(1, 1e15, 50)
    handles += axes[1].loglog(d, EPS * d, color=plot.INK, linewidth=0.8, label=r"$\varepsilon d$")
    axes[1].set(
        xlabel="largest $d$ of the steps",
        ylabel=r"backward error $\|A - UH\|_F / \|A\|_F$",
        ylim=(1e-16, 3),
    )
    fig.legend(handles=handles, loc="outside lower right", ncols=2)
    out.plot(
        "stability",
        fig,
        "Left: mapping functions of first steps against the line that a stable one must not fall "
        f"much below. Right: worst backward error of {n} × {n} matrices of condition 1e15, "
        "float64, against the largest d of the steps: Newton–Schulz from norms of 1 to nearly √3, "
        "minimax polynomials with cushions 0 to 0.3 and a singular value where the first step is "
        "least.",
    )


if __name__ == "__main__":
    main(study, __file__)
