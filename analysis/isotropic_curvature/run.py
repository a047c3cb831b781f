"""The isotropic curvature model: which step is best, and when it is the polar factor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Figure, Output, main, panels
from scipy import optimize
from scipy.stats import norm, qmc

from polarlib import norms, plot, schedule, testing

Array = np.ndarray

SIGMA = np.array([10, 5, 2, 1, 0.1])  # singular values of the gradient
N = len(SIGMA)
C = 1.0  # of H = c r^4
POWERS = (1.5, 2.0, 2.5, 4.0, 8.0, 32.0)
ALPHAS = (0.2, 0.5)  # the measured growth is r^(2 + alpha)
LOG_POINTS = {True: 13, False: 16}  # 2^13 Sobol points with --quick and for the wall, else 2^16
# A wall at r = 1: H is finite up to it, with slope `a`, and infinite beyond. Each direction is on
# the sphere, so that exactly the Q with spectral norm 1 or less have a finite expectation.
WALL = norms.spectral()
WALL_SIGMA = np.array([5.0, 4, 3, 2, 1])
LEVELS = (0.99, 1.01, 1.5, 2.5)  # slopes over n sigma_min
# Two growths with slope 1 at r = 1: H'(r) / r from r^2.
SLOPES = {"a r": lambda r2: r2**-0.5, "a r^2/2": np.ones_like}
ROUNDING = 1e-12  # what two equal values of a schedule may differ by


# -- H = c r^4, without sampling -------------------------------------------------------------


def fourth_moment(q: Array) -> tuple[float, Array]:
    """E |Q zeta|^4 = ((tr A)^2 + 2 tr A^2) / (n (n + 2)), A = Q^T Q, and its gradient."""
    a = q.T @ q
    value = (np.trace(a) ** 2 + 2 * np.sum(a * a)) / (N * (N + 2))
    return value, 4 * (np.trace(a) * q + 2 * q @ a) / (N * (N + 2))


def objective(q: Array, g: Array) -> tuple[float, Array]:
    """-tr(Q G^T) + c E |Q zeta|^4 and its gradient."""
    moment, gradient = fourth_moment(q)
    return -np.sum(q * g) + C * moment, C * gradient - g


def best_fourth(sigma: Array) -> Array:
    """Singular values of the best step for H = c r^4: a root of the gradient."""
    found = optimize.root(
        lambda s: np.diag(objective(np.diag(s), np.diag(sigma))[1]), np.cbrt(sigma), tol=1e-14
    )
    if not found.success:
        raise ArithmeticError(found.message)
    return found.x


def over_all_matrices(g: Array) -> Array:
    """The best step, minimised over all matrices from a start that knows nothing of G."""
    start = np.random.default_rng(2).standard_normal(g.size)

    def flat(x: Array) -> tuple[float, Array]:
        value, gradient = objective(x.reshape(g.shape), g)
        return value, gradient.ravel()

    options = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 5000, "maxfun": 5000, "maxcor": 25}
    found = optimize.minimize(flat, start, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(g.shape)


def fourth(out: Output, quick: bool) -> None:
    s = best_fourth(SIGMA)
    out.figure("singular values of the best step, H = r^4", s)
    # The formula s^3 + D s = n (n + 2) sigma / (8 c), solved for D: the same for every value?
    out.figure("D from each singular value, H = r^4", N * (N + 2) * SIGMA / (8 * C * s) - s**2)
    out.figure("ratios s_1/s_i, H = r^4", s[0] / s)
    g = testing.with_singular_values(SIGMA, seed=1)
    u, _, vh = np.linalg.svd(g)
    q = u * s @ vh
    size = np.linalg.norm(g)
    out.figure(
        "gradient of the whole matrix at the best step, H = r^4",
        np.linalg.norm(objective(q, g)[1]) / size,
    )
    out.figure(
        "distance to the minimiser over all matrices, H = r^4",
        np.linalg.norm(over_all_matrices(g) - q) / np.linalg.norm(q),
    )


# -- H = r^p, sampled ------------------------------------------------------------------------


def variates(u: Array) -> Array:
    """Normal variates, so that the directions are uniform on the sphere."""
    return norm.ppf(u)


def sphere(quick: bool = True) -> Array:
    """Squares of the coordinates of Sobol points on the sphere, rolled through the coordinates.

    All that the model needs: Q has the singular vectors of G, in whose basis it is diagonal.
    """
    m = LOG_POINTS[quick]
    u = qmc.Sobol(N, scramble=False).random_base2(m) + 0.5 / 2**m  # off the faces of the cube
    z = variates(u) ** 2
    z /= z.sum(axis=1, keepdims=True)
    return np.concatenate([np.roll(z, k, axis=1) for k in range(N)])


def expectation(s: Array, z: Array, p: float) -> tuple[float, Array, Array]:
    """E |Q zeta|^p / p with its gradient and Hessian in the singular values."""
    r2 = z @ s**2
    first = r2 ** (p / 2 - 1) @ z / len(z)
    second = (z.T * r2 ** (p / 2 - 2)) @ z / len(z)
    value = np.mean(r2 ** (p / 2)) / p
    return value, s * first, np.diag(first) + (p - 2) * np.outer(s, s) * second


def best_power(sigma: Array, z: Array, p: float) -> Array:
    """Singular values of the best step for H = r^p / p, by Newton's method with halved steps.

    Another factor of H multiplies all of them by the same number.
    """
    s = sigma ** (1 / (p - 1))
    s *= (sigma @ s / (p * expectation(s, z, p)[0])) ** (1 / (p - 1))
    for _ in range(500):
        value, gradient, hessian = expectation(s, z, p)
        step = np.linalg.solve(hessian, sigma - gradient)
        if np.abs(step / s).max() <= 1e-10:
            return s + step
        slope = (sigma - gradient) @ step
        t = 1.0
        while (
            np.any(s + t * step <= 0)
            or expectation(s + t * step, z, p)[0] - value - t * (sigma @ step) > -0.1 * t * slope
        ):
            t /= 2
            if t < 1e-12:
                raise ArithmeticError(f"no descent for H = r^{p:g}")
        s = s + t * step
    raise ArithmeticError(f"no minimum found for H = r^{p:g}")


def excess(s: Array) -> Array:
    """(s_i / s_j) / (sigma_i / sigma_j) of each pair i < j: Theorem 1 has it at most 1."""
    i, j = np.triu_indices(N, 1)
    return s[i] / s[j] / (SIGMA[i] / SIGMA[j])


def powers(out: Output, quick: bool) -> None:
    z = sphere(quick)
    pairs = [z[:, 0] ** 2 / 3, z[:, 0] * z[:, 1], z[:, 0] * z[:, 2]]
    out.figure(
        "fourth moments of the sampled directions, relative",
        [np.mean(pair) * N * (N + 2) for pair in pairs],
    )
    best = {p: best_power(SIGMA, z, p) for p in out.steps(POWERS, "best steps")}
    for p, s in best.items():
        sampled = ", sampled" * (p == 4)
        out.figure(f"ratios s_1/s_i, H = r^{p:g}{sampled}", s[0] / s)
    faster = [p for p in POWERS if p > 2]
    out.figure(
        "largest (s_i/s_j) / (sigma_i/sigma_j), H = r^2.5, r^4, r^8, r^32",
        [excess(best[p]).max() for p in faster],
    )
    out.figure("smallest (s_i/s_j) / (sigma_i/sigma_j), H = r^1.5", excess(best[1.5]).min())
    measured = [best_power(SIGMA, z, 2 + alpha) for alpha in ALPHAS]
    out.figure("ratio s_1/s_5, H = r^2.2, r^2.5", [s[0] / s[-1] for s in measured])
    rows = [[f"r^{p:g}", *s / s[0]] for p, s in best.items()]
    out.table("ratios", ["H", *(f"s_{i + 1}/s_1" for i in range(N))], rows)
    out.plot(
        "ratios",
        draw_ratios(best),
        "Singular values of the best step over those of the gradient, each divided by the largest, "
        f"σ = {', '.join(f'{v:g}' for v in SIGMA)}. Above the line of r²: closer in ratio.",
    )


STYLES = (
    (plot.VERMILLION, ":", "v"),
    ("#000000", "-", None),
    (plot.ORANGE, "--", "^"),
    (plot.GREEN, "-.", "s"),
    (plot.SKY, "-", "o"),
    (plot.BLUE, "--", "D"),
)


def draw_ratios(best: dict[float, Array]) -> Figure:
    fig, (ax,) = panels(height=3.0)
    x = SIGMA / SIGMA[0]
    wall = best_at_wall(SIGMA, z=sphere(), level=0.99, slope=SLOPES["a r"])
    ax.plot(x, wall / wall[0], color="#777777", ls=(0, (6, 2)), marker="x", label="wall")
    for (p, s), (colour, line, marker) in reversed(list(zip(best.items(), STYLES, strict=True))):
        label = f"$r^{{{p:g}}}$"
        ax.plot(x, s / s[0], color=colour, ls=line, marker=marker, ms=4, label=label)
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("singular value of the gradient, σᵢ/σ₁")
    ax.set_ylabel("that of the best step, sᵢ/s₁")
    fig.legend(loc="outside lower center", ncols=4, title="growth H")
    return fig


# -- a wall ----------------------------------------------------------------------------------


def best_at_wall(sigma: Array, z: Array, level: float, slope: Callable[[Array], Array]) -> Array:
    """Singular values of the best step for a growth with a wall at r = 1.

    Projected gradient. H has slope `level` * n * sigma_min just before the wall.
    """
    a = level * N * sigma[-1]
    s = np.ones(N)
    for _ in range(20000):
        gradient = a * s * (slope(z @ s**2) @ z / len(z)) - sigma
        new = np.diag(WALL.project(np.diag(s - gradient / (2 * a))))
        change = np.abs(new - s).max()
        s = new
        if change <= 1e-9:
            return s
    raise ArithmeticError("the projected gradient did not converge")


def wall(out: Output, quick: bool) -> None:
    z = sphere()
    ours = {
        (name, level): best_at_wall(WALL_SIGMA, z, level, slope)
        for name, slope in SLOPES.items()
        for level in out.steps((*LEVELS, 1.1), f"wall, H = {name}")
    }
    out.figure("wall below the threshold, 0.99", ours["a r", 0.99])
    out.figure("wall above the threshold, 1.1", ours["a r", 1.1])
    out.figure("wall above the threshold, 2.5", ours["a r", 2.5])
    for name in SLOPES:
        out.figure(
            f"smallest singular value at 0.99, 1.01, 1.5, 2.5 of the threshold, H = {name}",
            [ours[name, level][-1] for level in LEVELS],
        )


def threshold(out: Output, quick: bool) -> None:
    z = sphere()
    levels = np.geomspace(0.7, 3, 7 if quick else 25)
    rows = []
    for level in out.steps(levels, "threshold"):
        rows.append([level, *best_at_wall(WALL_SIGMA, z, level, SLOPES["a r"])])
    out.table("threshold", ["a / (n sigma_min)", *(f"s_{i + 1}" for i in range(N))], rows)
    fig, (ax,) = panels(height=2.6)
    for i, row in enumerate(np.array(rows).T[1:]):
        colour, line, marker = STYLES[i]
        ax.plot(levels, row, color=colour, ls=line, marker=marker, ms=3, label=f"$s_{i + 1}$")
    ax.axvline(1, color="#777777", lw=0.8)
    ax.set_xlabel("slope before the wall over n σₘᵢₙ, a/(n σₘᵢₙ)")
    ax.set_ylabel("singular value of the best step")
    fig.legend(loc="outside lower center", ncols=5)
    out.plot(
        "threshold",
        fig,
        "Singular values of the best step for H = a r with a wall at r = 1, σ = "
        f"{', '.join(f'{v:g}' for v in WALL_SIGMA)}. Left of the vertical line the polar factor is "
        "the best step.",
    )


# -- steps of Muon against Theorem 1 ---------------------------------------------------------


def values() -> Array:
    return np.geomspace(1e-3, 1, 2000)


def order(out: Output, quick: bool) -> None:
    """What five steps of two schedules do to 1999 pairs of neighbouring singular values."""
    x = values()
    images = [schedule(name, steps=5)(x) for name in ("jordan", "newton_schulz_5")]
    out.figure(
        "neighbours whose order is reversed, Jordan x 5, Taylor x 5",
        [int(np.sum(np.diff(y) < -ROUNDING)) for y in images],
    )
    out.figure(
        "neighbours whose ratio grows, Jordan x 5, Taylor x 5",
        [int(np.sum(np.diff(y / x) > ROUNDING)) for y in images],
    )


def study(out: Output, quick: bool) -> None:
    fourth(out, quick)
    powers(out, quick)
    wall(out, quick)
    threshold(out, quick)
    order(out, quick)


if __name__ == "__main__":
    main(study, __file__)
