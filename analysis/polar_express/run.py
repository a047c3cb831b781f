"""Polar Express: the best composition of odd polynomials, how fast, and against what."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels

import polarlib
from polarlib import design, files, plot
from polarlib.testing import with_singular_values

# The cushion that gives the printed list to the last digit, as ports of the authors' code name it;
# the algorithm in the paper's text has 1/10.
CUSHION = 0.02407327424182761
SAFETY = 0.01  # the factor 1.01 on every step
WRONG_BY = 100  # by which the lower end is wrong, as in the paper
NORMALISATION = "none"  # of the matrix whose error is compared with the scalars'
LOWEST = 1e-6  # smallest singular value of the paper's first experiment
ITERATIONS = 26  # until Newton-Schulz has converged from there
DEGREES = (3, 5)
SMALLEST = 1e-300  # errors below come close to the end of the format
LOWERS = (1e-1, 1e-3, 1e-6)
GRADIENTS = ("transformer_mlp_in_late", "transformer_attention_out_late")
WORDS = {
    "newton_schulz_5": "Newton–Schulz, degree 5",
    "jordan": "Jordan",
    "you": "You",
    "exact": r"Polar Express, $\ell = \sigma_{\min}$",
    "high": r"Polar Express, $\ell = 100\,\sigma_{\min}$",
    "low": r"Polar Express, $\ell = \sigma_{\min}/100$",
}
LOOK = {
    "newton_schulz_5": (plot.SKY, "-.", "s"),
    "jordan": (plot.VERMILLION, "--", "^"),
    "you": (plot.ORANGE, ":", "v"),
    "exact": (plot.BLUE, "-", "o"),
    "high": (plot.GREEN, (0, (5, 1, 1, 1)), "D"),
    "low": (plot.PURPLE, (0, (3, 1)), "P"),
}


def best(lower: float, steps: int) -> polarlib.Schedule:
    """The paper's composition of steps of degree 5."""
    return design.greedy(lower, [5] * steps)


def exponent(degree: int, steps: np.ndarray) -> np.ndarray:
    """Of |1 - l^2| in the convergence theorem."""
    return ((degree + 1) / 2) ** steps


def covered(smallest: float, lower: float) -> float:
    """The l of the theorem if the lower end was too high: the smallest singular value."""
    return smallest


def errors(s: polarlib.Schedule, sigma: np.ndarray) -> list[float]:
    """Worst |1 - s(sigma)| after each step: the spectral error of a matrix with these values."""
    return [float(np.abs(1 - s.truncate(k)(sigma)).max()) for k in range(1, len(s) + 1)]


def reaches(path: list[float], level: float) -> int:
    """Iterations until the error is below a level."""
    return next(k for k, e in enumerate(path, 1) if e < level)


def overtakes(path: list[float], other: list[float]) -> int:
    """First iteration from which on one error stays below another."""
    behind = [k for k, (e, f) in enumerate(zip(path, other, strict=False), 1) if e >= f]
    return max(behind, default=0) + 1


def coefficients(out: Output, quick: bool) -> None:
    """The printed list, recomputed from the interval and the cushion."""
    found = design.greedy(1e-3, [5] * 8, cushion=CUSHION)
    printed = polarlib.schedule("polar_express_raw", 8)
    for i, name in enumerate("abc"):
        out.figure(f"coefficients {name}", [step[i] for step in found.steps])
    rows = [
        (k, name, repr(ours), repr(theirs), abs(ours / theirs - 1))
        for k, (step, other) in enumerate(zip(found.steps, printed.steps, strict=True), 1)
        for name, ours, theirs in zip("abc", step, other, strict=True)
    ]
    out.table(
        "coefficients", ["step", "coefficient", "derived", "printed", "relative difference"], rows
    )
    # With 1.01 on every step, what becomes of a singular value in the end.
    step = design.greedy(1e-3, [5] * 8, cushion=CUSHION, safety=SAFETY, safety_mode="post_hoc")
    factor = 1 + SAFETY
    last = polarlib.Schedule(
        steps=(tuple(c / factor ** (2 * i + 1) for i, c in enumerate(step.steps[-1])),),
        lower=0.5,
        name="squeezed last step",
    )
    x = 1.0
    for _ in range(100):
        x = last(x)
    out.figure("limit with safety factor, below 1 by", 1 - float(x))


def spectral_errors(points: int) -> dict[str, list[float]]:
    """Errors after each iteration, singular values evenly spaced on a logarithmic scale."""
    sigma = np.geomspace(1, LOWEST, points)
    paths = {
        name: errors(polarlib.schedule(name, steps=None if name == "you" else ITERATIONS), sigma)
        for name in ("newton_schulz_5", "jordan", "you")
    }
    lowers = {"exact": LOWEST, "high": WRONG_BY * LOWEST, "low": LOWEST / WRONG_BY}
    return paths | {name: errors(best(lower, 18), sigma) for name, lower in lowers.items()}


def first_experiment(out: Output, quick: bool) -> None:
    """The paper's first experiment: singular values from 1e-6 to 1."""
    paths = spectral_errors(200 if quick else 2000)
    newton_schulz, jordan, exact = (paths[k] for k in ("newton_schulz_5", "jordan", "exact"))
    out.figure("Newton-Schulz after 17 iterations", newton_schulz[16])
    out.figure("Jordan after 11 iterations", jordan[10])
    out.figure("Jordan after 26 iterations", jordan[25])
    out.figure("Polar Express after 11 iterations", exact[10])
    out.figure(
        "iterations, Newton-Schulz over Polar Express",
        [
            reaches(newton_schulz, level) / reaches(exact, level)
            for level in (0.5, 1e-1, 1e-2, 1e-4)
        ],
    )
    out.figure(
        "overtakes Jordan, bound wrong by 100",
        sorted(overtakes(paths[name], jordan) for name in ("high", "low")),
    )
    every = zip(jordan, exact, strict=False)
    out.figure("worst of Polar Express over Jordan", max(e / f for f, e in every))
    out.table(
        "errors_log_spectrum",
        ["iteration", *paths],
        [
            (k, *(p[k - 1] if k <= len(p) else "" for p in paths.values()))
            for k in range(1, ITERATIONS + 1)
        ],
    )


def matrix(out: Output, quick: bool) -> None:
    """Errors of matrices are those of their singular values, to rounding."""
    n = 24 if quick else 150
    s = best(LOWEST, 12)
    a = with_singular_values(np.geomspace(1, LOWEST, n))
    u = polarlib.polar(a).unitary
    q = polarlib.orthogonalize(a, schedule=s, normalisation=NORMALISATION, form="plain")
    scalar = errors(s, np.geomspace(1, LOWEST, n))[-1]
    out.figure("matrix against scalars", abs(np.linalg.norm(q - u, 2) - scalar))


def gradients(out: Output, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Products and relative Frobenius error on the gradient of a layer, in single precision."""
    a = files.sample_matrices()[name]
    s = np.linalg.svd(a.astype(float), compute_uv=False)
    least = float(s[-1] / np.linalg.norm(s))
    runs = {
        known: polarlib.measure(a, known, steps=None if known == "you" else 12)
        for known in ("newton_schulz_5", "jordan", "you")
    }
    with warnings.catch_warnings():  # the paper's compositions here have no safety factor
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        lowers = {"exact": least, "high": WRONG_BY * least, "low": least / WRONG_BY}
        for label, lower in lowers.items():
            runs[label] = polarlib.measure(a, best(min(lower, 0.5), 12))
    out.table(
        f"errors_{name}",
        ["method", "products", "frobenius error", "smallest singular value", "largest"],
        [
            (label, t.matmuls[k], t.distance[k], *np.sort(t.singular_values[k])[[0, -1]])
            for label, t in runs.items()
            for k in range(t.n_steps + 1)
        ],
    )
    return {label: (t.matmuls, t.distance) for label, t in runs.items()}


def least_errors(degree: int, lower: float) -> np.ndarray:
    """Least errors of 1, 2, ... steps, proven by a dual bound, up to the first tiny one."""
    found = np.zeros(39)
    for t in range(1, found.size + 1):
        found[t - 1] = design.least_error(lower, [degree] * t)
        if found[t - 1] < SMALLEST:
            break
    return found


def rates(out: Output, quick: bool) -> None:
    """Least errors of T steps against the theorem's bound."""
    fig, axes = panels(len(DEGREES), height=5.4, sharex=True, sharey=True)
    worst, orders, rows = [], [], []
    steps = np.arange(1, 40)
    for ax, degree in zip(axes, DEGREES, strict=True):
        found = []
        for i, lower in enumerate(LOWERS):
            least = least_errors(degree, lower)
            with np.errstate(under="ignore"):
                bound = np.exp(exponent(degree, steps) * np.log1p(-(lower**2)))
            kept = (least > SMALLEST) & (bound > SMALLEST)
            worst.append(float((least[kept] / bound[kept]).max()))
            small = np.log(least[(least > SMALLEST) & (least < 0.1)])
            found.append(float((small[-1] - small[-2]) / (small[-2] - small[-3])))
            rows += [(degree, lower, t, e, b) for t, e, b in zip(steps, least, bound, strict=True)]
            colour = plot.COLOURS[(3, 4, 2)[i]]
            for y, how, words in (
                (least, {"marker": plot.MARKERS[i], "markersize": 2.5}, "least error"),
                (bound, {"linestyle": ("--", "-.", ":")[i], "zorder": 3}, "theorem"),
            ):
                shown = y > SMALLEST
                label = rf"{words}, $\ell = 10^{{{np.log10(lower):.0f}}}$"
                ax.semilogy(steps[shown], y[shown], color=colour, label=label, **how)
        orders.append(float(np.mean(found)))
        ax.set_title(f"degree {degree}")
        ax.set_ylim(1e-50, 30)
        ax.set_xlim(0, 40)
        ax.set_ylabel(r"worst error on $[\ell, 1]$")
    axes[-1].set_xlabel("steps $T$")
    lines, labels = axes[0].get_legend_handles_labels()  # by turns, of one l after another
    order = [*range(0, len(lines), 2), *range(1, len(lines), 2)]
    lines, labels = ([x[k] for k in order] for x in (lines, labels))
    fig.legend(lines, labels, loc="outside lower center", ncols=2)
    out.figure("least error over the theorem's bound", max(worst))
    out.figure("order of convergence, degrees 3 and 5", orders)
    out.table("rates", ["degree", "lower", "steps", "least error", "bound of the theorem"], rows)
    out.plot(
        "rates",
        fig,
        "Least worst-case error of any composition of T odd polynomials of degree 3 (top) and 5 "
        "(bottom) on [ℓ, 1], and the bound |1 − ℓ²|^((q+1)^T) of the paper's theorem. "
        "The theorem has the order of convergence, and is pessimistic about its onset: for degree "
        "3 and ℓ = 1e-6 its bound begins to fall after 40 steps.",
    )


def too_high(out: Output, quick: bool) -> None:
    """The theorem also covers a lower end that was too high."""
    over = []
    for smallest in LOWERS:
        lower = min(100 * smallest, 0.9)
        path = errors(best(lower, 12), np.geomspace(smallest, 1, 2001))
        base = np.log1p(-(covered(smallest, lower) ** 2))
        limit = [float(np.exp(3.0**t * base)) for t in range(1, 13)]
        over += [e / b for e, b in zip(path, limit, strict=True) if b > 1e-12]
    out.figure("error over the bound, lower bound 100 times too high", max(over))


def optimality(out: Output, quick: bool) -> None:
    """Nothing is better than greedy: proven for its error, and tried."""
    gaps = []
    for lower in (1e-3, 1e-2) if quick else (1e-6, 1e-4, 1e-3, 1e-2, 1e-1):
        for count in (1, 3, 5):
            certificate = best(lower, count).certify()
            gaps.append(certificate.upper - design.least_error(lower, [5] * count))
    out.figure("certified error minus least error", max(gaps))
    ours = best(1e-3, 5)
    rows = [("greedy composition of five steps of degree 5", ours.error())]
    rivals = ("jordan", "you", "polar_express", "polar_express_102", "cans", "newton_schulz_5")
    rows += [(name, polarlib.schedule(name, steps=5).error(1e-3)) for name in rivals]
    rng = np.random.default_rng(0)
    x = np.geomspace(1e-3, 1, 4000)
    tried = []
    for size in np.geomspace(1e-6, 1e-2, 40 if quick else 400):
        steps = [tuple(c * (1 + size * rng.standard_normal()) for c in s) for s in ours.steps]
        y = x
        for a, b, c in steps:
            z = y * y
            y = y * (a + z * (b + z * c))
        tried.append(float(np.abs(1 - y).max()))
    rows.append((f"the best of {len(tried)} perturbations of it, sampled", min(tried)))
    out.table("five_steps", ["composition", "worst error on [1e-3, 1]"], rows)
    out.figure("best rival over greedy", min(e for _, e in rows[1:]) / rows[0][1])


def curves(out: Output, quick: bool) -> None:
    """Error against matrix products, on the first experiment and on gradients."""
    names = GRADIENTS[:1] if quick else GRADIENTS
    count = 1 + len(names)
    fig, axes = panels(count, height=1.1 + 1.9 * count)
    for label, path in spectral_errors(200).items():
        products = 3 * np.arange(1, len(path) + 1)
        colour, line, marker = LOOK[label]
        how = {"color": colour, "linestyle": line, "marker": marker, "markersize": 2.5}
        axes[0].semilogy(products, np.maximum(path, 1e-16), label=WORDS[label], **how)
    axes[0].set(
        ylabel=r"$\|X - UV^{\mathsf{T}}\|_2$",
        title=r"$\sigma$ log-spaced in $[10^{-6}, 1]$",
        ylim=(1e-12, 3),
    )
    for ax, name in zip(axes[1:], out.steps(names, "gradients"), strict=True):
        for label, (products, error) in gradients(out, name).items():
            colour, line, marker = LOOK[label]
            how = {"color": colour, "linestyle": line, "marker": marker, "markersize": 2.5}
            ax.semilogy(products, error, **how)
        ax.set(
            ylabel=r"$\|X - UV^{\mathsf{T}}\|_F / \sqrt{n}$",
            title="gradient, " + name.removeprefix("transformer_").replace("_", " "),
        )
    axes[-1].set_xlabel("matrix products")
    fig.legend(loc="outside lower center", ncols=2)
    out.plot(
        "convergence",
        fig,
        "Error against matrix products. Top: singular values evenly spaced on a logarithmic "
        "scale from 1e-6 to 1, as in the paper. Below: gradients of a small transformer, in "
        "float32, whose errors end at rounding; σ_min is that of the gradient after division by "
        "the Frobenius norm. You's set has five steps.",
    )


def study(out: Output, quick: bool) -> None:
    coefficients(out, quick)
    first_experiment(out, quick)
    matrix(out, quick)
    curves(out, quick)
    rates(out, quick)
    too_high(out, quick)
    optimality(out, quick)
    out.note(
        "The paper's GPT-2 gradients are not public; gradients that come with polarlib are used "
        "in their place. Its training runs are not repeated."
    )


if __name__ == "__main__":
    main(study, __file__)
