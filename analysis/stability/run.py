"""Which iterations are backward stable: the condition on the mapping function, and what happens."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels

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
N = 200  # the size of the matrices
SIZES = (50, 100, 150, 200, 250, 300)  # over which the error without a cushion is compared
NEAR = math.sqrt(3) * (1 - 1e-6)  # to where Newton-Schulz converges, nearly
# Norms of its input: sqrt(3) (1 - 10^-k) and two that are far from it.
TOPS = {k: math.sqrt(3) * (1 - 10.0**-k) for k in range(2, 11)}
CUSHIONS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3)
Row = tuple[str, str, float, float]  # iteration, parameter, d, worst backward error
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


def polar(a: np.ndarray, method: str) -> polarlib.PolarResult:
    """The library's result by a method."""
    return polarlib.polar(a, method=method)


def newton_schulz(a: np.ndarray, top: float) -> np.ndarray:
    """Polar factor of a matrix of norm 1 by Newton-Schulz, started from norm `top`."""
    return polarlib.orthogonalize(top * a, schedule=cubic(top), form="plain")


def minimax(cushion: float) -> polarlib.Schedule:
    """Greedy minimax steps of degree 5 for all singular values of the matrices."""
    return design.greedy(1 / CONDITION, [5] * STEPS, cushion=cushion, safety=SAFETY)


def worst_place(s: polarlib.Schedule) -> float:
    """The singular value that the first step makes least."""
    return float(turning_points(s.steps[0])[-1])


def spectrum(special: float | None = None, n: int = N) -> np.ndarray:
    """Geometric singular values; the nearest one is moved to `special`, if that is given."""
    sigma = np.geomspace(1, 1 / CONDITION, n)
    if special is not None:
        sigma[np.argmin(np.abs(sigma - special))] = special
    return sigma


def matrices(quick: bool, special: float | None = None) -> list[np.ndarray]:
    return [with_singular_values(spectrum(special), seed=k) for k in range(1 if quick else 4)]


def methods(out: Output, quick: bool) -> list[Row]:
    """The library's methods at full precision."""
    exact = {"qdwh": rational_growth(1), "zolotarev": rational_growth(8)}
    exact |= {"newton": growth(scaled_newton(1 / CONDITION), 1 / CONDITION, 1.0)}
    falls = growth(odd(NEWTON_SCHULZ), 1e-15, 1.0)
    out.figure("d of QDWH, Zolotarev, scaled Newton, Newton-Schulz to 1", [*exact.values(), falls])
    rows: list[Row] = []
    fell_back = 0
    for method in out.steps(METHODS, "polar decompositions"):
        found = [polar(a, method) for a in matrices(quick)]
        name = "polar(minimax)" if method == "minimax" else method
        error = max(r.backward_error for r in found)
        rows.append((name, "", exact.get(method, math.nan), error))
        if method != "svd":
            out.figure(f"backward error, polar(method={method!r})", error)
        fell_back += sum(r.method != method for r in found)
    out.figure("fell back to the SVD", fell_back)
    return rows


def from_norms(out: Output, quick: bool) -> list[Row]:
    """Newton-Schulz from norms between 1 and sqrt(3)."""
    given = matrices(quick)
    near = {k: TOPS[k] for k in ((2, 4, 6, 8) if quick else TOPS)}
    rows: list[Row] = []
    for top in out.steps((1.0, 1.5, *near.values()), "Newton-Schulz"):
        error = max(backward_error(a, newton_schulz(a, top)) for a in given)
        rows.append(("newton-schulz", f"{top:.12g}", worst_growth(cubic(top).truncate(1)), error))
    errors = {parameter: error for _, parameter, _, error in rows}
    out.figure("backward error, Newton-Schulz from norm 1", errors["1"])
    name = "backward error, Newton-Schulz from norm sqrt(3) (1 - 1e-6)"
    out.figure(name, errors[f"{NEAR:.12g}"])
    last = np.log([[d, error] for _, _, d, error in rows if d > 1e3])
    slope = np.polyfit(last[:, 0], last[:, 1], 1)[0]
    out.figure("slope of the backward error over d, Newton-Schulz, log-log", slope)
    return rows


def error_of(a: np.ndarray, s: polarlib.Schedule) -> float:
    """Backward error of the result of a schedule, on a matrix of norm 1."""
    u = polarlib.orthogonalize(a, schedule=s, normalisation="none", form="plain")
    return backward_error(a, u)


def polynomials(out: Output, quick: bool) -> list[Row]:
    """Minimax polynomials with and without a cushion."""
    rows: list[Row] = []
    for cushion in out.steps((0.0, 0.1) if quick else CUSHIONS, "minimax polynomials"):
        s = minimax(cushion)
        d = worst_growth(s.truncate(24))
        for family, special in (("minimax", worst_place(s)), ("minimax, geometric", None)):
            error = max(error_of(a, s) for a in matrices(quick, special))
            rows.append((family, f"{cushion:g}", d, error))
    by = {(family, parameter): error for family, parameter, _, error in rows}
    for cushion, words in (("0", "without cushion"), ("0.1", "with cushion 0.1")):
        out.figure(f"backward error, minimax {words}, at worst", by["minimax", cushion])
        out.figure(f"backward error, minimax {words}", by["minimax, geometric", cushion])
    if not quick:
        s = minimax(0.0)
        sizes = [
            (n, error_of(with_singular_values(spectrum(n=n), seed=0), s))
            for n in out.steps(SIZES, "sizes")
        ]
        out.table("sizes", ["n", "backward error, minimax without cushion"], sizes)
    return rows


def study(out: Output, quick: bool) -> None:
    rows = methods(out, quick) + from_norms(out, quick) + polynomials(out, quick)
    judged = [(d, e) for _, _, d, e in rows if d == d]
    out.figure("backward error over eps d, all iterations", max(e / (EPS * d) for d, e in judged))
    out.table("backward_errors", ["iteration", "parameter", "d", "backward error"], rows)
    draw(out, rows)
    out.note(
        "The condition of Nakatsukasa and Higham: with the mapping function f of a step, X's "
        "singular values in (0, ‖X‖], f(x)/max f must not be much below x/‖X‖; d is the factor by "
        "which it is below at worst. A step must also be computed with a small mixed error, which "
        "all steps here are."
    )


def draw(out: Output, rows: list[Row]) -> None:
    fig, axes = panels(rows=2, height=5.0)
    lower = 1 / CONDITION
    guarded = design.greedy(lower, [5], cushion=0.1)
    bare = design.greedy(lower, [5])
    maps = (
        ("QDWH", design.zolotarev(1, lower).truncate(1), 1.0, plot.BLUE, "-"),
        ("Newton–Schulz, norm 1", odd(NEWTON_SCHULZ), 1.0, plot.GREEN, "--"),
        (
            r"Newton–Schulz, norm near $\sqrt{3}$",
            odd(NEWTON_SCHULZ),
            NEAR,
            plot.VERMILLION,
            (0, (1, 1)),
        ),
        ("minimax, cushion 0.1", odd(guarded.steps[0]), 1.0, plot.SKY, "-."),
        ("minimax, no cushion", odd(bare.steps[0]), 1.0, plot.PURPLE, (0, (6, 1, 1, 1, 1, 1))),
    )
    x = np.linspace(1e-3, 1, 20001)
    for label, f, upper, colour, line in maps:
        y = f(x * upper)
        wide = 2.6 if label == "QDWH" else 1.0  # the line d = 1 is on top of it
        axes[0].semilogy(x, y / y.max(), color=colour, linestyle=line, linewidth=wide, label=label)
    axes[0].semilogy(x, x, color=plot.INK, linewidth=0.7, label=r"$x / \|X\|_2$ ($d = 1$)")
    axes[0].set(
        xlabel=r"singular value over the largest, $x / \|X\|_2$",
        ylabel=r"$f(x) / \max f$ of the first step",
        ylim=(1e-7, 2),
    )
    axes[0].legend(loc="lower left")
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
            markeredgewidth=0.8,
            fillstyle="none",
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
    axes[1].legend(handles=handles, loc="upper left")
    out.plot(
        "stability",
        fig,
        "Above: mapping functions of first steps against the line that a stable one must not fall "
        f"much below. Below: worst backward error of {N} × {N} matrices of condition 1e15, "
        "float64, against the largest d of the steps: Newton–Schulz from norms of 1 to nearly √3, "
        "minimax polynomials with cushions 0 to 0.3 and a singular value where the first step is "
        "least.",
    )


if __name__ == "__main__":
    main(study, __file__)
