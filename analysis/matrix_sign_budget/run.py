"""The best degrees of a composition for a budget of matrix products."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import Output, main, panels

from polarlib import Schedule, design, plot

# One product for every power of x^2 and one with x, as in Horner's rule.
HORNER = {degree: (degree + 1) // 2 for degree in range(3, 27, 2)}
# Degree 9 for 4 products and so on: Paterson and Stockmeyer.
BLOCKS = {degree: cost for degree, cost in design.costs().items() if degree}
CONDITIONS = (1e1, 1e3, 1e5, 1e7, 1e10, 1e16)
PUBLISHED = ((0.5, (7, 9)), (0.25, (7, 15)))  # lower ends and degrees of published compositions
MIXED = (3, 5, 5, 5, 5, 5)

# The search, a function of its own so that a test can replace it by another.
frontier = design.frontier


def chebyshev(step: np.ndarray) -> list[float]:
    """Coefficients of T1, T3, ... of an odd polynomial."""
    power = np.zeros(2 * len(step))
    power[1::2] = step
    return np.polynomial.chebyshev.poly2cheb(power)[1::2].tolist()


def largest(s: Schedule, k: int) -> float:
    """Largest value of the first k steps, by which step k is divided: all but the last."""
    return 1.0 if k == len(s) else 1 + s.truncate(k).error()


def normalised(lower: float, degrees: Sequence[int]) -> list[list[float]]:
    """Best steps in the Chebyshev basis, each but the last scaled to a largest value of 1."""
    s = design.greedy(lower, degrees)
    found, size = [], 1.0
    for k, step in enumerate(s.steps, 1):
        # The step before was divided by its largest value, which its successor multiplies back.
        given = np.array([c * size ** (2 * i + 1) for i, c in enumerate(step)])
        size = largest(s, k)
        found.append(chebyshev(given / size))
    return found


def growth(degree: int) -> float:
    """How much one step multiplies tiny singular values, in relation to the largest."""
    return design.best(degree, 1e-30).rho / 1e-30


def sequences(budget: float, costs: dict[int, float]) -> Iterator[tuple[int, ...]]:
    """Every sequence of degrees within a budget."""
    for degree, cost in costs.items():
        if cost <= budget:
            yield (degree,)
            for rest in sequences(budget - cost, costs):
                yield (degree, *rest)


def published(out: Output, quick: bool) -> None:
    """Compositions that others have computed, for homomorphic encryption."""
    for lower, degrees in PUBLISHED:
        for k, step in enumerate(normalised(lower, degrees), 1):
            out.figure(f"degrees {degrees[0]} and {degrees[1]} on [{lower}, 1], step {k}", step)
    bits = [-np.log2(design.greedy(*a).error()) for a in PUBLISHED]
    out.figure("bits of these compositions", bits)
    five = design.greedy(1e-3, [5] * 5).error()
    mixed = design.greedy(1e-3, MIXED).error()
    out.figure("errors at 1e-3: five of degree 5; one of degree 3 before", [five, mixed])


def search(out: Output, quick: bool) -> None:
    """The search against all sequences, whose least errors have a proof of their own."""
    few = {degree: BLOCKS[degree] for degree in (3, 5, 7, 9)}
    most = 7 if quick else 11
    worst, count = 0.0, 0
    for condition in out.steps((1e1, 1e3) if quick else (1e1, 1e3, 1e7), "all sequences"):
        found = frontier(1 / condition, most, degrees=list(few), cost=few)
        every = [(sum(few[d] for d in s), s) for s in sequences(most, few)]
        least = {s: design.largest_complement(1 / condition, s) for _, s in every}
        count += len(every)
        for choice in found:
            best = max(least[s] for cost, s in every if cost <= choice.cost)
            worst = max(worst, best / least[choice.degrees] - 1)
    out.figure("best of all sequences over the one found, 1 - E, minus 1", worst)
    out.note(f"The search was compared with {count} sequences of degrees 3, 5, 7 and 9.")


def rates(out: Output, quick: bool) -> None:
    """Growth of tiny singular values per product, and the fastest degrees."""
    degrees = range(3, 27, 2)
    found = {d: growth(d) for d in degrees}
    out.figure("growth of tiny singular values, degrees 3 and 5", [found[3], found[5]])
    horner = {d: found[d] ** (1 / HORNER[d]) for d in degrees}
    blocks = {d: found[d] ** (1 / BLOCKS[d]) for d in degrees}
    out.figure("fastest degree, one product a power", max(horner, key=horner.__getitem__))
    out.figure("fastest degree, in blocks", max(blocks, key=blocks.__getitem__))
    columns = ["degree", "growth", "products (Horner)", "per product", "products (blocks)"]
    out.table(
        "growth",
        [*columns, "per product (blocks)"],
        [(d, found[d], HORNER[d], horner[d], BLOCKS[d], blocks[d]) for d in degrees],
    )
    fig, (ax,) = panels(height=2.5)
    for label, of, colour, marker, line in (
        ("one product per power", horner, plot.BLUE, "o", "-"),
        ("in blocks", blocks, plot.VERMILLION, "s", "--"),
    ):
        how = {"color": colour, "marker": marker, "linestyle": line}
        ax.plot(list(of), list(of.values()), label=label, **how)
    ax.set(xlabel="degree", ylabel="growth per product")
    ax.set_xticks(list(degrees)[::2])
    ax.legend(loc="lower left")
    out.plot(
        "growth",
        fig,
        "Factor by which one product multiplies tiny singular values, in relation to the largest, "
        "for a step of a degree.",
    )


def degrees(out: Output, quick: bool) -> None:
    """Best degrees for condition numbers and budgets."""
    rows, fives = [], []
    some = {d: HORNER[d] for d in (3, 5, 7, 9, 11)}
    for condition in out.steps(CONDITIONS[1:5:2] if quick else CONDITIONS, "best degrees"):
        for budget in (18, 24, 36):
            best = design.best_degrees(1 / condition, budget, degrees=list(some), cost=some)
            mixed = design.best_degrees(1 / condition, budget)
            fives.append(best.count(5) / len(best) if condition >= 1e3 else np.nan)
            rows.append((condition, budget, "·".join(map(str, best)), "·".join(map(str, mixed))))
    columns = ["condition", "budget", "best, one product per power", "best of 3, 5, 9 in blocks"]
    out.table("degrees", columns, rows)
    out.figure(
        "share of degree 5 among the best degrees, condition 1e3 and above", np.nanmean(fives)
    )


def budgets(out: Output, quick: bool) -> None:
    """Picture of the least worst error over products, for three choices of degrees."""
    fig, axes = panels(2, height=5.0, sharey=True)
    some = {d: HORNER[d] for d in (3, 5, 7, 9, 11)}
    for ax, (power, shown) in zip(axes, ((3, (8, 25)), (7, (24, 45))), strict=True):
        for label, chosen, cost, colour, marker, line, size in (
            ("degree 5 alone", (5,), None, plot.GREEN, "o", "none", 5),
            ("degrees 3 to 11, one product per power", list(some), some, plot.BLUE, "D", "-", 2.5),
            ("degrees 3, 5, 9, in blocks", (3, 5, 9), None, plot.VERMILLION, "s", "--", 2.5),
        ):
            choices = design.frontier(10.0**-power, shown[1], degrees=chosen, cost=cost)
            ax.semilogy(
                [c.cost for c in choices],
                [max(c.error, 1e-16) for c in choices],
                color=colour,
                marker=marker,
                markersize=size,
                markerfacecolor="none" if size > 3 else colour,
                linestyle=line,
                label=label,
            )
        ax.set_title(rf"$\kappa = 10^{{{power}}}$")
        ax.set(ylabel=r"least worst error on $[1/\kappa, 1]$", xlim=shown, ylim=(1e-13, 3))
        ax.set_xticks(range(10 * (shown[0] // 10 + 1), shown[1] + 1, 5))
    axes[-1].set_xlabel("matrix products")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    out.plot("budget", fig, "Least worst error for a number of products.")


def study(out: Output, quick: bool) -> None:
    published(out, quick)
    search(out, quick)
    budgets(out, quick)
    rates(out, quick)
    degrees(out, quick)


if __name__ == "__main__":
    main(study, __file__)
