"""The best degrees of a composition for a budget of matrix products."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import TWO_COLUMNS, Output, main, panels

from polarlib import design, plot

# One product for every power of x^2 and one with x, as Horner's rule has it.
HORNER = {degree: (degree + 1) // 2 for degree in range(3, 27, 2)}
# Degree 9 for 4 products and so on: Paterson and Stockmeyer.
BLOCKS = {degree: cost for degree, cost in design.costs().items() if degree}
CONDITIONS = (1e1, 1e3, 1e5, 1e7, 1e10, 1e16)


def chebyshev(step: np.ndarray) -> list[float]:
    """Coefficients of T1, T3, ... of an odd polynomial."""
    power = np.zeros(2 * len(step))
    power[1::2] = step
    return np.polynomial.chebyshev.poly2cheb(power)[1::2].tolist()


def normalised(lower: float, degrees: list[int]) -> list[list[float]]:
    """Best steps in the Chebyshev basis, each but the last scaled to a largest value of 1."""
    s = design.greedy(lower, degrees)
    found, size = [], 1.0
    for k, step in enumerate(s.steps, 1):
        # The step before was divided by its largest value, which its successor multiplies back.
        given = np.array([c * size ** (2 * i + 1) for i, c in enumerate(step)])
        size = 1.0 if k == len(s) else 1 + s.truncate(k).error()
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


def published(out: Output) -> None:
    """Compositions that others have computed, for homomorphic encryption."""
    for lower, degrees in ((0.5, [7, 9]), (0.25, [7, 15])):
        for k, step in enumerate(normalised(lower, degrees), 1):
            out.figure(f"degrees {degrees[0]} and {degrees[1]} on [{lower}, 1], step {k}", step)
    bits = [-np.log2(design.greedy(*a).error()) for a in ((0.5, [7, 9]), (0.25, [7, 15]))]
    out.figure("bits of these compositions", bits)
    five = design.greedy(1e-3, [5] * 5).error()
    mixed = design.greedy(1e-3, [3, 5, 5, 5, 5, 5]).error()
    out.figure("errors at 1e-3: five quintics; a cubic and five quintics", [five, mixed])


def search(out: Output, quick: bool) -> None:
    """The search against all sequences, whose least errors have a proof of their own."""
    few = {degree: BLOCKS[degree] for degree in (3, 5, 7, 9)}
    most = 7 if quick else 11
    worst, count = 0.0, 0
    for condition in (1e1, 1e3) if quick else (1e1, 1e3, 1e7):
        found = design.frontier(1 / condition, most, degrees=list(few), cost=few)
        every = [(sum(few[d] for d in s), s) for s in sequences(most, few)]
        least = {s: design.largest_complement(1 / condition, s) for _, s in every}
        count += len(every)
        for choice in found:
            best = max(least[s] for cost, s in every if cost <= choice.cost)
            worst = max(worst, best / least[choice.degrees] - 1)
    out.figure("best of all sequences over the one found, 1 - E, minus 1", worst)
    out.note(f"The search was compared with {count} sequences of degrees 3, 5, 7 and 9.")


def study(out: Output, quick: bool) -> None:
    published(out)
    search(out, quick)
    degrees = range(3, 27, 2)
    rates = {d: growth(d) for d in degrees}
    out.figure("growth of tiny singular values, degrees 3 and 5", [rates[3], rates[5]])
    horner = {d: rates[d] ** (1 / HORNER[d]) for d in degrees}
    blocks = {d: rates[d] ** (1 / BLOCKS[d]) for d in degrees}
    out.figure("fastest degree, one product a power", max(horner, key=horner.__getitem__))
    out.figure("fastest degree, in blocks", max(blocks, key=blocks.__getitem__))
    columns = ["degree", "growth", "products (Horner)", "a product", "products (blocks)"]
    out.table(
        "growth",
        [*columns, "a product (blocks)"],
        [(d, rates[d], HORNER[d], horner[d], BLOCKS[d], blocks[d]) for d in degrees],
    )

    rows, fives = [], []
    some = {d: HORNER[d] for d in (3, 5, 7, 9, 11)}
    for condition in CONDITIONS[1:5:2] if quick else CONDITIONS:
        for budget in (18, 24, 36):
            best = design.best_degrees(1 / condition, budget, degrees=list(some), cost=some)
            mixed = design.best_degrees(1 / condition, budget)
            fives.append(best.count(5) / len(best) if condition >= 1e3 else np.nan)
            rows.append((condition, budget, "·".join(map(str, best)), "·".join(map(str, mixed))))
    columns = ["condition", "budget", "best, one product a power", "best of 3, 5, 9 in blocks"]
    out.table("degrees", columns, rows)
    out.figure(
        "share of quintics among the best degrees, condition 1e3 and above", np.nanmean(fives)
    )

    fig, axes = panels(1, 2, width=TWO_COLUMNS, height=2.9)
    for label, found, colour, marker, line in (
        ("one product a power", horner, plot.BLUE, "o", "-"),
        ("in blocks", blocks, plot.VERMILLION, "s", "--"),
    ):
        axes[0].plot(
            list(found),
            list(found.values()),
            color=colour,
            marker=marker,
            linestyle=line,
            label=label,
        )
    axes[0].set(xlabel="degree", ylabel="growth a product, tiny singular values")
    axes[0].set_xticks(list(degrees)[::2])
    axes[0].legend(loc="lower left")
    for condition, line in ((1e3, "-"), (1e7, "--")):
        for label, chosen, cost, colour, marker in (
            ("quintics alone", (5,), None, plot.SKY, "o"),
            ("degrees 3 to 11, one product a power", list(some), some, plot.BLUE, "D"),
            ("degrees 3, 5, 9, in blocks", (3, 5, 9), None, plot.VERMILLION, "s"),
        ):
            choices = design.frontier(
                1 / condition, 30 if condition < 1e7 else 48, degrees=chosen, cost=cost
            )
            axes[1].semilogy(
                [c.cost for c in choices],
                [max(c.error, 1e-16) for c in choices],
                color=colour,
                marker=marker,
                markersize=2.5,
                linestyle=line,
                label=rf"{label}, $\kappa = 10^{{{np.log10(condition):.0f}}}$",
            )
    axes[1].set(xlabel="matrix products", ylabel=r"least worst error on $[1/\kappa, 1]$")
    axes[1].set_ylim(1e-13, 3)
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    out.plot(
        "budget",
        fig,
        "Left: factor by which one product multiplies tiny singular values, in relation to the "
        "largest, for a step of a degree. Right: least worst error for a number of products.",
    )


if __name__ == "__main__":
    main(study, __file__)
