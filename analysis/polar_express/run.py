"""Polar Express: the best composition of odd polynomials, how fast, and against what."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import TWO_COLUMNS, Output, main, panels

import polarlib
from polarlib import design, files, plot
from polarlib.testing import with_singular_values

# The cushion that gives the printed list to the last digit, as ports of the authors' code name it;
# the algorithm in the paper's text has 1/10.
CUSHION = 0.02407327424182761
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
    "high": (plot.GREEN, "-", "D"),
    "low": (plot.PURPLE, "-", "P"),
}


def errors(s: polarlib.Schedule, sigma: np.ndarray) -> list[float]:
    """Worst |1 - s(sigma)| after each step: the spectral error of a matrix with these values."""
    return [float(np.abs(1 - s.truncate(k)(sigma)).max()) for k in range(1, len(s) + 1)]


def reaches(path: list[float], level: float) -> int:
    """Iterations until the error is below a level."""
    return next(k for k, e in enumerate(path, 1) if e < level)


def overtakes(path: list[float], other: list[float]) -> int:
    """First iteration from which on one error stays below another."""
    last = max(k for k, (e, f) in enumerate(zip(path, other, strict=False), 1) if e >= f)
    return last + 1


def coefficients(out: Output) -> None:
    """The printed list, derived anew from the interval and the cushion."""
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
    step = design.greedy(1e-3, [5] * 8, cushion=CUSHION, safety=0.01, safety_mode="post_hoc")
    last = polarlib.Schedule(
        steps=(tuple(c / 1.01 ** (2 * i + 1) for i, c in enumerate(step.steps[-1])),),
        lower=0.5,
        name="squeezed last step",
    )
    x = 1.0
    for _ in range(100):
        x = last(x)
    out.figure("limit with safety factor", float(x))


def first_experiment(out: Output, quick: bool) -> dict[str, list[float]]:
    """Singular values evenly spaced on a logarithmic scale from 1e-6 to 1."""
    sigma = np.geomspace(1, LOWEST, 200 if quick else 2000)
    paths = {
        name: errors(polarlib.schedule(name, steps=None if name == "you" else ITERATIONS), sigma)
        for name in ("newton_schulz_5", "jordan", "you")
    }
    for name, lower in (("exact", LOWEST), ("high", 100 * LOWEST), ("low", LOWEST / 100)):
        paths[name] = errors(design.greedy(lower, [5] * 18), sigma)
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
    # Errors of matrices are those of their singular values, to rounding.
    n = 24 if quick else 150
    s = design.greedy(LOWEST, [5] * 12)
    a = with_singular_values(np.geomspace(1, LOWEST, n))
    u = polarlib.polar(a).unitary
    q = polarlib.orthogonalize(a, schedule=s, normalisation="none", form="plain")
    scalar = errors(s, np.geomspace(1, LOWEST, n))[-1]
    out.figure("matrix against scalars", abs(np.linalg.norm(q - u, 2) - scalar))
    out.table(
        "errors_log_spectrum",
        ["iteration", *paths],
        [
            (k, *(p[k - 1] if k <= len(p) else "" for p in paths.values()))
            for k in range(1, ITERATIONS + 1)
        ],
    )
    return paths


def gradients(out: Output, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Products spent and relative Frobenius error on a real gradient, in single precision."""
    a = files.sample_matrices()[name]
    s = np.linalg.svd(a.astype(float), compute_uv=False)
    least = float(s[-1] / np.linalg.norm(s))
    runs = {
        known: polarlib.measure(a, known, steps=None if known == "you" else 12)
        for known in ("newton_schulz_5", "jordan", "you")
    }
    with warnings.catch_warnings():  # the paper's compositions here have no safety factor
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        for label, lower in (("exact", least), ("high", 100 * least), ("low", least / 100)):
            runs[label] = polarlib.measure(a, design.greedy(min(lower, 0.5), [5] * 12))
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


def rates(out: Output) -> None:
    """Least errors of T steps, proven by a dual bound, against the theorem's."""
    fig, axes = panels(1, 2, width=TWO_COLUMNS, height=3.2, sharey=True)
    worst, orders = [], []
    rows = []
    for ax, degree in zip(axes, DEGREES, strict=True):
        q = (degree - 1) // 2
        found = []
        for i, lower in enumerate(LOWERS):
            steps = np.arange(1, 40)
            least = np.zeros(steps.size)
            for t in steps:
                least[t - 1] = design.least_error(lower, [degree] * int(t))
                if least[t - 1] < SMALLEST:
                    break
            with np.errstate(under="ignore"):
                bound = np.exp((q + 1.0) ** steps * np.log1p(-(lower**2)))
            kept = (least > SMALLEST) & (bound > 0)
            worst.append(float((least[kept] / bound[kept]).max()))
            small = np.log(least[(least > SMALLEST) & (least < 0.1)])
            found.append(float((small[-1] - small[-2]) / (small[-2] - small[-3])))
            rows += [(degree, lower, t, e, b) for t, e, b in zip(steps, least, bound, strict=True)]
            colour = plot.COLOURS[(3, 4, 2)[i]]
            marker = plot.MARKERS[i]
            shown = least > SMALLEST
            ax.semilogy(
                steps[shown],
                least[shown],
                color=colour,
                marker=marker,
                label=rf"least error, $\ell$ = {lower:g}",
            )
            reach = bound > SMALLEST
            ax.semilogy(
                steps[reach],
                bound[reach],
                color=colour,
                linestyle="--",
                linewidth=0.9,
                zorder=3,
                label=rf"theorem, $\ell$ = {lower:g}",
            )
        orders.append(float(np.mean(found)))
        ax.set_title(f"degree {degree}")
        ax.set_xlabel("steps $T$")
        ax.set_ylim(1e-50, 30)
        ax.set_xlim(0, 40 if degree == 3 else 28)
    axes[0].set_ylabel(r"worst error on $[\ell, 1]$")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    out.figure("least error over the theorem's bound", max(worst))
    out.figure("order of convergence, degrees 3 and 5", orders)
    out.table("rates", ["degree", "lower", "steps", "least error", "bound of the theorem"], rows)
    out.plot(
        "rates",
        fig,
        "Least worst-case error of any composition of T odd polynomials of degree 3 (left) and 5 "
        "(right) on [ℓ, 1], and the bound |1 − ℓ²|^((q+1)^T) of the paper's theorem (dashed). "
        "The theorem has the order of convergence, and is pessimistic about its onset.",
    )
    # The theorem also covers a lower bound that was too high.
    over = []
    for smallest in LOWERS:
        s = design.greedy(min(100 * smallest, 0.9), [5] * 12)
        path = errors(s, np.geomspace(smallest, 1, 2001))
        limit = [float(np.exp(3.0**t * np.log1p(-(smallest**2)))) for t in range(1, 13)]
        over += [e / b for e, b in zip(path, limit, strict=True) if b > 1e-12]
    out.figure("error over the bound, lower bound 100 times too high", max(over))


def optimality(out: Output, quick: bool) -> None:
    """Nothing is better than greedy: proven for its error, and tried."""
    gaps = []
    for lower in (1e-3, 1e-2) if quick else (1e-6, 1e-4, 1e-3, 1e-2, 1e-1):
        for count in (1, 3, 5):
            certificate = design.greedy(lower, [5] * count).certify()
            gaps.append(certificate.upper - design.least_error(lower, [5] * count))
    out.figure("certified error minus least error", max(gaps))
    floor = design.least_error(1e-3, [5] * 5)
    rows = [("the best of five quintics, proven", floor)]
    rivals = ("jordan", "you", "polar_express", "polar_express_102", "cans", "newton_schulz_5")
    rows += [(name, polarlib.schedule(name, steps=5).error(1e-3)) for name in rivals]
    rng = np.random.default_rng(0)
    best = design.greedy(1e-3, [5] * 5)
    x = np.geomspace(1e-3, 1, 4000)
    tried = []
    for size in np.geomspace(1e-6, 1e-2, 40 if quick else 400):
        steps = [tuple(c * (1 + size * rng.standard_normal()) for c in s) for s in best.steps]
        y = x
        for a, b, c in steps:
            z = y * y
            y = y * (a + z * (b + z * c))
        tried.append(float(np.abs(1 - y).max()))
    rows.append((f"the best of {len(tried)} perturbations of it, sampled", min(tried)))
    out.table("five_quintics", ["composition", "worst error on [1e-3, 1]"], rows)
    out.figure("best rival over the least error", min(e for _, e in rows[1:]) / floor)


def study(out: Output, quick: bool) -> None:
    coefficients(out)
    paths = first_experiment(out, quick)
    rates(out)
    optimality(out, quick)
    names = GRADIENTS[:1] if quick else GRADIENTS
    fig, axes = panels(1, 1 + len(names), width=TWO_COLUMNS, height=3.2)
    for label, path in paths.items():
        colour, line, marker = LOOK[label]
        shown = np.maximum(path, 1e-16)
        axes[0].semilogy(
            3 * np.arange(1, len(path) + 1),
            shown,
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=2.5,
            label=WORDS[label],
        )
    axes[0].set(
        xlabel="matrix products",
        ylabel=r"spectral error $\|X - UV^{\mathsf{T}}\|_2$",
        title=r"$\sigma$ log-spaced in $[10^{-6}, 1]$",
        ylim=(1e-12, 3),
    )
    for ax, name in zip(axes[1:], names, strict=True):
        for label, (products, error) in gradients(out, name).items():
            colour, line, marker = LOOK[label]
            ax.semilogy(
                products, error, color=colour, linestyle=line, marker=marker, markersize=2.5
            )
        ax.set(
            xlabel="matrix products",
            ylabel=r"$\|X - UV^{\mathsf{T}}\|_F / \sqrt{n}$",
            title=name.removeprefix("transformer_").replace("_", " "),
        )
    fig.legend(loc="outside lower center", ncols=3)
    out.plot(
        "convergence",
        fig,
        "Error against matrix products. Left: singular values evenly spaced on a logarithmic "
        "scale from 1e-6 to 1, as in the paper. Others: gradients of a small transformer, in "
        "float32, whose errors end at rounding; σ_min is theirs after division by the Frobenius "
        "norm. You's set has five steps.",
    )
    out.note(
        "The paper's GPT-2 gradients are not public; gradients that come with polarlib take "
        "their place. Its training runs are not repeated."
    )


if __name__ == "__main__":
    main(study, __file__)
