"""One linear attention layer in context: spectral descent on its population loss."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels
from descent import FIRST, RATIO, SCHEDULES, adam, decayed, descent, first, held, scalar, spectral

import polarlib
from polarlib import norms, plot, testing

D, N = 16, 40  # dimension, pairs in a prompt
LONG = 400
KAPPAS = (1.0, 1e1, 1e2, 1e3, 1e4)
TARGET = 1e-6  # of ||Gamma - T^-1||_2 / ||T^-1||_2
SPECTRAL_STEPS = 150
ADAM_RATES, ADAM_STEPS = (0.03, 0.1, 0.3), 3000  # rates in units of ||T^-1||_2
PROMPTS, BATCH = 40_000, 4_000

msign = norms.spectral().lmo  # the exact polar factor


@dataclass(frozen=True)
class Layer:
    """Population loss of the prediction x_q^T Gamma (1/N) sum x_i y_i, y = w^T x, x ~ N(0, Lambda).

    `lam` and `t` are the eigenvalues of Lambda and T, in the columns of `u`.
    """

    lam: np.ndarray
    t: np.ndarray
    u: np.ndarray
    covariance: np.ndarray
    factor: np.ndarray
    best: np.ndarray
    size: float

    def loss(self, g: np.ndarray) -> float:
        right = self.covariance @ g @ self.covariance
        return float(
            np.trace(self.covariance) / 2 - np.trace(right) + np.sum((right @ self.factor) * g) / 2
        )

    def gradient(self, g: np.ndarray) -> np.ndarray:
        return self.covariance @ (g @ self.factor - np.eye(len(g))) @ self.covariance

    def error(self, g: np.ndarray) -> float:
        return float(np.linalg.norm(g - self.best, 2) / self.size)

    def done(self, g: np.ndarray) -> bool:
        return self.error(g) <= TARGET

    def modes(self, g: np.ndarray) -> np.ndarray:
        """Return the eigenvalues of a function of Lambda."""
        return np.einsum("ij,ij->j", self.u, g @ self.u)


def second_moment(lam: np.ndarray, n: int) -> np.ndarray:
    """Return the eigenvalues of T, E[H^2] = Lambda T, H the mean of n products x x^T."""
    return (1 + 1 / n) * lam + lam.sum() / n


def layer(kappa: float, d: int = D, n: int = N) -> Layer:
    lam = np.geomspace(1, 1 / kappa, d)
    t = second_moment(lam, n)
    u = testing.orthonormal(d, d, seed=0)
    return Layer(
        lam,
        t,
        u,
        (u * lam) @ u.T,
        (u * t) @ u.T,
        (u / t) @ u.T,
        float(np.linalg.norm(1 / t, np.inf)),
    )


def size_of(p: Layer, n: int, t: int) -> float:
    """Return the step size; n / tr Lambda bounds the eigenvalues of T^-1."""
    return n / float(p.lam.sum()) * decayed(t)


def inexact(name: str):
    """Return the LMO of the spectral norm by a schedule of `SCHEDULES`."""
    return norms.spectral(polar=polarlib.schedule(*SCHEDULES[name])).lmo


def spectral_path(p: Layer, lmo=None, n: int = N, steps: int = SPECTRAL_STEPS):
    start = np.zeros_like(p.covariance)
    return spectral(start, p.gradient, lmo or msign, partial(size_of, p, n), steps)


def curvatures(p: Layer) -> np.ndarray:
    """Return the extreme ones, smallest first, of the quadratic in the modes of Lambda."""
    values = p.lam**2 * p.t
    return np.array([values.min(), values.max()])


def descent_rate(p: Layer) -> float:
    """Return the best constant rate of gradient descent."""
    return 2 / float(curvatures(p).sum())


def descent_path(p: Layer, steps: int):
    return descent(np.zeros_like(p.covariance), p.gradient, descent_rate(p), steps)


def predicted(p: Layer) -> int:
    """Return the iterations of gradient descent: the slowest mode has the largest distance."""
    b, a = curvatures(p)
    return math.ceil(math.log(TARGET) / math.log((a - b) / (a + b)))


def proven(p: Layer, n: int) -> int:
    """Return the steps after which the bound of every mode is at most the target."""
    start = n / float(p.lam.sum()) * FIRST / (1 - RATIO)
    return math.ceil(math.log(start / (TARGET * p.size)) / math.log(1 / RATIO))


# -- the parts -------------------------------------------------------------------------------


def losses(out: Output, quick: bool) -> None:
    """Take the loss at three matrices, by the formula and over simulated prompts."""
    p = layer(10.0, 8)
    points = [np.zeros((8, 8)), p.best, p.best / 2]
    formula = [p.loss(g) for g in points]
    out.figure("loss at 0, at the minimiser, at half of it", formula)
    out.figure("least loss by eigenvalues", float(np.sum(p.lam * (1 - p.lam / p.t)) / 2))
    simulated = np.array(
        [simulate(p, points, seed) for seed in out.steps(range(PROMPTS // BATCH), "prompts")]
    )
    samples = simulated.transpose(1, 0, 2).reshape(3, -1)
    means = samples.mean(axis=1)
    error = samples.std(axis=1, ddof=1) / math.sqrt(samples.shape[1])
    out.figure(
        "simulated loss minus formula, standard errors", ((means - formula) / error).tolist()
    )
    # The same with a term of T left out.
    others = [
        replace(p, factor=p.factor - left)
        for left in (p.covariance / N, np.eye(8) * p.lam.sum() / N)
    ]
    apart = [
        [(m - o.loss(g)) / e for o in (p, *others)]
        for g, m, e in zip(points, means, error, strict=True)
    ]
    matrices = ("0", "minimiser", "half of the minimiser")
    rows = zip(matrices, formula, means, error, *zip(*apart, strict=True), strict=True)
    columns = ["matrix", "formula", "simulated", "standard error", "difference in standard errors"]
    out.table("simulation", [*columns, "without 1/N in T", "without tr(Lambda)/N in T"], rows)


def simulate(p: Layer, points, seed: int) -> np.ndarray:
    """Return half the squared error at each point of a batch of random prompts."""
    rng = np.random.default_rng(seed)
    d = len(p.lam)
    root = (p.u * np.sqrt(p.lam)) @ p.u.T
    x = rng.standard_normal((BATCH, N, d)) @ root
    w = rng.standard_normal((BATCH, d))
    query = rng.standard_normal((BATCH, d)) @ root
    y = np.einsum("bnd,bd->bn", x, w)
    mean = np.einsum("bn,bnd->bd", y, x) / N
    truth = np.sum(query * w, axis=1)
    return np.array([(np.sum((query @ g) * mean, axis=1) - truth) ** 2 / 2 for g in points])


def muon(out: Output, quick: bool) -> list[int | None]:
    """Count the steps of spectral descent for two lengths of prompts."""
    counts = {}
    for n in (N, LONG):
        layers = [layer(kappa, n=n) for kappa in KAPPAS]
        counts[n] = [first(spectral_path(p, n=n), p.done) for p in out.steps(layers, f"N = {n}")]
    out.figure("iterations, Muon, kappa 1 to 1e4", counts[N])
    out.figure("iterations, Muon, N = 400, kappa 1 to 1e4", counts[LONG])
    out.figure("proven number of steps, kappa 1 to 1e4", [proven(layer(k), N) for k in KAPPAS])
    return counts[N]


def scalars(out: Output, quick: bool) -> None:
    """Compare the matrix iteration with its scalar sequences and with the bound."""
    apart, shares = 0.0, []
    for kappa in out.steps(KAPPAS[:4], "scalar sequences"):
        p = layer(kappa)
        rows = scalar(np.zeros(D), lambda g, p=p: g * p.t - 1, partial(size_of, p, N), 60)
        path = list(spectral_path(p, steps=60))
        shares.append(held(np.array([p.modes(g) - 1 / p.t for g in path]), N / p.lam.sum()))
        both = zip(path, rows, strict=True)
        apart = max(apart, *(np.abs(g - (p.u * v) @ p.u.T).max() / p.size for g, v in both))
    out.figure("bound held", float(np.mean(shares)))
    out.figure("largest entry of Gamma_t - gamma_t(Lambda), relative", float(apart))


def gradient_descent(out: Output, quick: bool) -> list[int | None]:
    """Count the steps of gradient descent at its best rate, and predict them."""
    ratios = [float(b / a) for a, b in map(curvatures, map(layer, KAPPAS[:3]))]
    out.figure("condition number of the quadratic, kappa 1, 10, 100", ratios)
    layers = [layer(kappa) for kappa in KAPPAS[: 2 if quick else 3]]
    counts = []
    for p in out.steps(layers, "gradient descent"):
        steps = 10 if p.lam[-1] == 1 else predicted(p) * 3
        counts.append(first(descent_path(p, steps), p.done))
    out.figure("iterations, gradient descent, kappa 10", counts[1])
    slow = [predicted(layer(kappa)) for kappa in KAPPAS[1:3]]
    out.figure("predicted for gradient descent, kappa 10 and 100", slow)
    if not quick:
        out.figure("iterations, gradient descent, kappa 100", counts[2])
    return counts


def adaptive(out: Output, quick: bool) -> list[int | None]:
    """Count the steps of Adam at its best constant rate."""
    counts, least = [], math.inf
    for kappa in out.steps(KAPPAS[:3], "Adam"):
        p = layer(kappa)
        runs = []
        for rate in ADAM_RATES:
            path = adam(np.zeros((D, D)), p.gradient, rate * p.size, ADAM_STEPS)
            errors = errors_of(path, p)
            runs.append(len(errors) - 1 if errors[-1] <= TARGET else None)
            if kappa == KAPPAS[2]:
                least = min(least, *errors)
        counts.append(min((c for c in runs if c is not None), default=None))
    out.figure("iterations, Adam, kappa 1 and 10", counts[:2])
    out.figure("least error of Adam, kappa 100", least)
    return counts


def errors_of(path, p: Layer) -> list[float]:
    """Return the errors of iterates until one is at most the target."""
    errors = []
    for g in path:
        errors.append(p.error(g))
        if errors[-1] <= TARGET:
            break
    return errors


def schedules(out: Output, quick: bool) -> dict[str, list[int | None]]:
    """Count the steps with an inexact polar factor."""
    rows, ends = {}, []
    for name in out.steps(SCHEDULES, "inexact factors"):
        layers = [layer(kappa) for kappa in KAPPAS]
        rows[name] = [first(spectral_path(p, inexact(name)), p.done) for p in layers]
        solved = [k for k, c in zip(KAPPAS, rows[name], strict=True) if c is not None]
        ends.append(max(solved, default=math.nan))
    out.figure("largest kappa solved, Jordan 5, Taylor 5, Taylor 12", ends)
    return rows


def picture(quick: bool):
    """Draw the error over the steps, spectral descent, gradient descent and Adam."""
    fig, (ax,) = panels(height=3.1)
    steps = 10_000 if quick else 100_000

    def draw(p: Layer, path, name: str, colour: str, line: str, marker: str) -> None:
        errors = np.array(errors_of(path, p))
        t = np.unique(np.geomspace(1, len(errors), 200).astype(int)) - 1
        how = {"color": colour, "linestyle": line, "marker": marker, "linewidth": 1.1}
        label = f"{name}, κ = {1 / p.lam[-1]:g}"
        ax.loglog(t + 1, errors[t], label=label, markevery=0.2, markersize=4, **how)

    for kappa, colour, line, marker in zip(
        (1.0, 1e2, 1e4), (plot.SKY, plot.BLUE, plot.INK), ("-", "--", ":"), "os^", strict=True
    ):
        p = layer(kappa)
        draw(p, spectral_path(p), "Muon", colour, line, marker)
    settings = ((10.0, "-", "Dv"), (100.0, "--", "PX"))
    for kappa, line, markers in settings:
        p = layer(kappa)
        path = descent_path(p, steps)
        draw(p, path, "gradient descent", plot.VERMILLION, line, markers[0])
    for kappa, line, markers in settings:
        p = layer(kappa)
        path = adam(np.zeros((D, D)), p.gradient, ADAM_RATES[1] * p.size, ADAM_STEPS)
        draw(p, path, "Adam", plot.GREEN, line, markers[1])
    ax.set_xlabel("1 + number of steps")
    ax.set_ylabel(r"$\Vert\Gamma_t - T^{-1}\Vert_2\,/\,\Vert T^{-1}\Vert_2$")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def study(out: Output, quick: bool) -> None:
    losses(out, quick)
    scalars(out, quick)
    rows = {
        "Muon": muon(out, quick),
        "gradient descent": gradient_descent(out, quick),
        "Adam": adaptive(out, quick),
    } | schedules(out, quick)
    table = [
        (name, *([c or "none" for c in counts] + ["not run"] * 5)[:5])
        for name, counts in rows.items()
    ]
    out.table("iterations", ["method", *(f"kappa {kappa:g}" for kappa in KAPPAS)], table)
    out.plot(
        "errors",
        picture(quick),
        f"Relative error over the steps, d = {D}, N = {N}, both axes logarithmic: spectral descent "
        "with the exact polar factor, gradient descent at its best constant rate, and Adam at a "
        f"constant rate of {ADAM_RATES[1]:g} ‖T⁻¹‖₂.",
    )


if __name__ == "__main__":
    main(study, __file__)
