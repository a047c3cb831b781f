"""Batch sizes of Muon on a noisy quadratic, and the best rate of an inexact step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Figure, Output, main, panels
from digits_network import digits, forward, gradients, losses, shapes

from polarlib import norms, orthogonalize, plot, schedule
from polarlib.updates import ema, uscg_step

Array = np.ndarray

# f(W) = |W - I|_F^2 / 2 for W of N x N, start 0, noise of mean square norm VARIANCE / b.
N, VARIANCE = 8, 16.0
RATE, TARGET = 0.01, 0.3
BETAS = (0.0, 0.5, 0.8, 0.9, 0.95)
TRIED = (0.0, 0.9)  # whose b T(b) is computed
# Batch sizes at which floors are measured, fractions of 1 as levels of noise. Beyond 2 the noise is
# small beside N, and the floor a power of b.
FLOORS = 2.0 ** np.arange(-2, 7)
LARGE = FLOORS >= 4
POWERS = (1.0, 0.5, 0.25)  # of 1/b, against which 1/T is drawn
LONGEST = 8000  # steps after which a run has no T

STEPS = (1, 3, 5)  # of the inexact factor
RATES = 2.0 ** np.arange(-4, -0.4, 0.5)
WIDTH, UPDATES, BATCH, MOMENTUM = 64, 60, 128, 0.9


# -- a noisy quadratic -----------------------------------------------------------------------


def noise(b: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Noise of a gradient for each batch size, the first axis."""
    deviation = np.sqrt(VARIANCE / (N * N * b))
    return deviation[:, None, None, None] * rng.standard_normal(shape)


def step(m: Array) -> Array:
    """The exact polar factor of each matrix: Muon's step."""
    return norms.spectral().lmo(m)


def gradient_norms(start: Array, b: Array, beta: float, runs: int, most: int) -> Iterator[Array]:
    """Yield the norm of the gradient at each step, averaged over runs: one for each batch size."""
    rng = np.random.default_rng(0)
    w = np.broadcast_to(start, (len(b), runs, N, N)).copy()
    m = np.zeros_like(w)
    for _ in range(most):
        g = w - np.eye(N)
        yield np.linalg.norm(g, axis=(2, 3)).mean(axis=1)
        m = ema(m, g + noise(b, g.shape, rng), beta)
        w = uscg_step(w, m, step, rate=RATE)


def floors(beta: float, quick: bool) -> Array:
    """Mean norm of the gradient at stationarity, for each batch size of `FLOORS`."""
    burn, most, runs = (300, 700, 8) if quick else (500, 2500, 16)
    history = list(gradient_norms(np.eye(N), FLOORS, beta, runs, most))
    return np.mean(history[burn:], axis=0)


def least_batch(floor: Array) -> float:
    """The batch size, a real number, whose floor is the target; NaN if every floor is below it."""
    if floor.max() <= TARGET:
        return float("nan")
    x = np.interp(-np.log(TARGET), -np.log(floor), np.log(FLOORS))
    return float(np.exp(x))


def exponent(floor: Array) -> float:
    """Slope of log floor over log b."""
    return float(np.polyfit(np.log(FLOORS[LARGE]), np.log(floor[LARGE]), 1)[0])


def steps_needed(b: Array, beta: float, quick: bool) -> Array:
    """Steps until the norm of the gradient, averaged over runs and steps, is at the target."""
    needed, total = np.full(len(b), np.nan), np.zeros(len(b))
    runs = 4 if quick else 8
    for t, norm in enumerate(gradient_norms(np.zeros((N, N)), b, beta, runs, LONGEST), start=1):
        total += norm
        needed[np.isnan(needed) & (total <= t * TARGET)] = t
        if not np.isnan(needed).any():
            break
    return needed


def share(x: Array, y: Array) -> float:
    """Share of the variance of y that a line in x explains; NaN if y is constant."""
    return np.corrcoef(x, y)[0, 1] ** 2 if np.ptp(y) > 0 else float("nan")


def minimum(x: Array, y: Array) -> float:
    """Place of the minimum of a curve, by a polynomial of degree 4; NaN if it is at an end."""
    fine = np.linspace(x[0], x[-1], 2001)
    k = int(np.argmin(np.polyval(np.polyfit(x, y, 4), fine)))
    return float(fine[k]) if 0 < k < len(fine) - 1 else float("nan")


def vertex(x: Array, y: Array) -> float:
    """Place of the minimum, by a parabola through the least point and two on either side.

    NaN if the least point is an end.
    """
    k = int(np.argmin(y))
    if k in (0, len(y) - 1):
        return float("nan")
    near = slice(max(k - 2, 0), k + 3)
    curvature, slope, _ = np.polyfit(x[near] - x[k], y[near], 2)
    return float(x[k] - slope / (2 * curvature))


def batches(out: Output, quick: bool) -> None:
    measured = {beta: floors(beta, quick) for beta in out.steps(BETAS, "floors")}
    least = {beta: least_batch(floor) for beta, floor in measured.items()}
    out.figure(
        "exponent of the floor in the batch size, beta 0, 0.9",
        [exponent(measured[beta]) for beta in TRIED],
    )
    out.figure(
        "least batch size over that of beta 0, beta 0.5, 0.8, 0.9, 0.95",
        [least[beta] / least[0.0] for beta in BETAS[1:]],
    )
    rows = [[beta, least[beta], *floor] for beta, floor in measured.items()]
    out.table("floors", ["beta", "least batch size", *(f"floor at {b:g}" for b in FLOORS)], rows)


def costs(out: Output, quick: bool) -> None:
    """The number of gradients, b T(b), over the batch size."""
    curves, best, lines, rows = {}, {}, [], []
    for beta in TRIED[1:] if quick else TRIED:
        floor = floors(beta, quick)
        least = least_batch(floor)
        unit = least if np.isfinite(least) else 1.0
        ratios = 2 ** np.arange(*((0.75, 3.1, 0.25) if quick else (0.5, 4.1, 0.25)))
        b = unit * ratios
        t = steps_needed(b, beta, quick)
        known = np.isfinite(t)
        curves[beta] = least, b, t
        # The mean of T norms is the target: their excess over the floor, summed, is the X of X/T.
        there = np.exp(np.interp(np.log(b), np.log(FLOORS), np.log(np.maximum(floor, 1e-12))))
        rows += [[beta, *row] for row in zip(b, t, b * t, t * (TARGET - there), strict=True)]
        best[beta] = np.exp(minimum(np.log(b[known]), np.log((b * t)[known])))
        out.figure(f"best batch size over the least one, beta {beta:g}", best[beta] / least)
        lines.append([beta, *(share(b[known] ** -p, 1 / t[known]) for p in POWERS)])
    shares = [f"share of the variance of 1/T by a line in b^-{p:g}" for p in POWERS]
    out.table("lines", ["beta", *shares], lines)
    out.table("batches", ["beta", "b", "T", "b T", "X"], rows)
    out.plot(
        "batches",
        draw_batches(curves, best),
        "Gradients until their mean norm is at the target, over the batch size. Dotted: the least "
        "batch size that gets there; marker with a ring: the best one.",
    )


def draw_batches(
    curves: dict[float, tuple[float, Array, Array]], best: dict[float, float]
) -> Figure:
    fig, (ax,) = panels(height=2.8)
    styles = {0.0: (plot.BLUE, "-", "o"), 0.9: (plot.VERMILLION, "--", "s")}
    for beta, (least, b, t) in curves.items():
        colour, line, marker = styles[beta]
        ax.plot(b, b * t, color=colour, ls=line, marker=marker, ms=3, label=f"β = {beta:g}")
        ax.axvline(least, color=colour, ls=":")
        height = np.interp(best[beta], b, b * t)
        ax.plot(best[beta], height, marker="o", ms=9, mfc="none", color=colour)
    ax.set(xscale="log", yscale="log", xlabel="batch size b", ylabel="gradients, b T(b)")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


# -- inexact steps on the digits -------------------------------------------------------------


def lmo(q: int | None, equal: bool) -> Callable[[Array], Array]:
    """Polar factor by q steps of the Taylor polynomial of degree 5, None for the exact one.

    With `equal`, the result is scaled to the Frobenius norm of the exact factor.
    """
    if q is None:
        return norms.spectral().lmo
    taylor = schedule("newton_schulz_5", steps=q)

    def inexact(m: Array) -> Array:
        u = orthogonalize(m, schedule=taylor, normalisation="frobenius")
        return u * (min(m.shape) ** 0.5 / np.linalg.norm(u)) if equal else u

    return inexact


def train(x: Array, y: Array, spectral: Callable[[Array], Array], rate: float, seed: int) -> float:
    """Logarithm of the loss after Scion's steps, whose rate falls linearly to 0."""
    rng = np.random.default_rng(seed)
    exact, sign = norms.spectral().lmo, norms.lp(np.inf).lmo
    radii = 1.0, 1.0, 1 / WIDTH
    drawn = [rng.standard_normal(shape) for shape in shapes(WIDTH)]
    starts = zip((exact, exact, sign), radii, drawn, strict=True)
    weights = [radius * f(w) for f, radius, w in starts]
    maps = spectral, spectral, sign
    momenta = [np.zeros_like(w) for w in weights]
    for k in range(UPDATES):
        rows = rng.integers(len(x), size=BATCH)
        for i, g in enumerate(gradients(weights, x[rows], y[rows])):
            momenta[i] = ema(momenta[i], g, MOMENTUM)
            now = rate * (1 - k / UPDATES)
            weights[i] = uscg_step(weights[i], momenta[i], maps[i], rate=now, radius=radii[i])
    return float(np.log(losses(forward(weights, x)[-1], y)[0]))


def inexact(out: Output, quick: bool) -> None:
    """Least loss over the rates, and the rate that has it, by the number of steps."""
    (x, y), seeds = digits(), range(2 if quick else 8)
    methods = [1, None] if quick else [*STEPS, None]
    kinds = [(q, equal) for equal in (False, True) for q in methods if q is not None or not equal]
    curves: dict[tuple[int | None, bool], Array] = {}
    for kind in out.steps(kinds, "training"):
        runs = [[train(x, y, lmo(*kind), rate, seed) for rate in RATES] for seed in seeds]
        curves[kind] = np.mean(runs, axis=0)
    for equal in (False, True):
        length = "equal length" if equal else "own length"
        lines = [curves[q, equal and q is not None] for q in methods]
        least = [line.min() for line in lines]
        out.figure(
            f"fall of the least log loss from q = 1 to exact, {length}", least[0] - least[-1]
        )
        if quick:
            continue
        if equal:
            out.figure(
                f"fall of the least log loss, q = 1 to 3 to 5 to exact, {length}", -np.diff(least)
            )
        best = [vertex(np.log2(RATES), line) for line in lines]
        out.figure(
            f"rise of log2 of the best rate from q = 1 to exact, {length}", best[-1] - best[0]
        )
    names = ["exact" if q is None else f"q {q}{', equal length' * e}" for q, e in curves]
    out.table("inexact", ["rate", *names], zip(RATES, *curves.values(), strict=True))
    out.plot(
        "inexact",
        draw_inexact(curves),
        "Loss on the digits after 60 Scion steps, over the rate: steps as the polynomial gives "
        "them (above), and scaled to the Frobenius norm of the exact factor (below).",
    )


def draw_inexact(curves: dict[tuple[int | None, bool], Array]) -> Figure:
    fig, axes = panels(2, height=4.2, sharex=True)
    looks = {
        1: (plot.VERMILLION, ":", "v"),
        3: (plot.ORANGE, "-.", "^"),
        5: (plot.SKY, "--", "s"),
        None: ("#000000", "-", "o"),
    }
    for ax, equal, title in zip(axes, (False, True), ("own length", "equal length"), strict=True):
        for q, (colour, line, marker) in looks.items():
            if (q, equal and q is not None) not in curves:
                continue
            y = np.exp(curves[q, equal and q is not None])
            label = "exact" if q is None else f"q = {q}"
            ax.plot(RATES, y, color=colour, ls=line, marker=marker, ms=3, label=label)
        ax.set(xscale="log", yscale="log", ylabel="training loss", title=title)
        ax.set_xscale("log", base=2)
    axes[1].set_xlabel("first rate")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)
    return fig


def study(out: Output, quick: bool) -> None:
    batches(out, quick)
    costs(out, quick)
    inexact(out, quick)


if __name__ == "__main__":
    main(study, __file__)
