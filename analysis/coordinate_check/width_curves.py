"""Losses over rates and widths: best rates, tables, and the picture of the study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from common import ONE_COLUMN, Figure, Output
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from polarlib import plot

Array = np.ndarray
LOOKS = {
    "Adam SP": (plot.VERMILLION, "-", "o"),
    "Adam muP": (plot.ORANGE, "--", "s"),
    "Muon plain": (plot.BLUE, ":", "^"),
    "Scion": (plot.GREEN, "-.", "D"),
}


def best(rates: Sequence[float], logs: Array) -> float:
    """Vertex of the parabola through the least value and its neighbours; NaN at an end."""
    i = int(np.argmin(logs))
    if i in (0, len(logs) - 1):
        return math.nan
    left, least, right = logs[i - 1 : i + 2]
    return rates[i] + (rates[1] - rates[0]) * (left - right) / (2 * (left - 2 * least + right))


class Curves(NamedTuple):
    """Log losses[width, rate, seed] of a method, with log2 of the rates."""

    widths: Sequence[int]
    rates: Sequence[float]
    losses: Array

    def logs(self) -> Array:
        """Means over seeds."""
        return self.losses.mean(axis=-1)

    def bests(self) -> list[float]:
        """Log2 of the best rates, by width."""
        return [best(self.rates, logs) for logs in self.logs()]

    def shift(self, widths: Sequence[int]) -> float:
        """Of the best rate, in octaves per doubling of the width; NaN where none is known."""
        bests = [self.bests()[self.widths.index(n)] for n in widths]
        if not np.isfinite(bests).all():
            return math.nan
        return float(np.polyfit(np.log2(widths), bests, 1)[0])

    def pairs(self) -> list[tuple[str, Curves]]:
        """The same of two seeds at a time."""
        starts = range(0, self.losses.shape[-1], 2)
        return [
            (f"{i} and {i + 1}", self._replace(losses=self.losses[..., i : i + 2])) for i in starts
        ]


def seed_rows(name: str, widths: Sequence[int], sizes: Array) -> list[list[object]]:
    """Rows of a table of sizes[width, seed, feature]."""
    return [
        [name, n, seed, *(f"{v:.6g}" for v in row)]
        for n, by_seed in zip(widths, sizes, strict=True)
        for seed, row in enumerate(by_seed)
    ]


def tables(
    out: Output, widths: Sequence[int], sizes: dict[str, Array], of: dict[str, Curves]
) -> None:
    """All values that the picture shows, and more."""
    rows: list[list[object]] = []
    for name, values in sizes.items():
        rows += seed_rows(name, widths, values)
    out.table("changes", ["method", "width", "seed", "layer 1", "layer 2", "scores"], rows)
    rows, shifts = [], []
    for name, curve in of.items():
        for n, logs, log_rate in zip(curve.widths, curve.losses, curve.bests(), strict=True):
            for rate, seeds in zip(curve.rates, logs, strict=True):
                numbers = f"{seeds.mean():.6g}", f"{seeds.std(ddof=1):.3g}", f"{log_rate:.4g}"
                rows.append([name, n, rate, *numbers])
        for seeds, pair in curve.pairs():
            shifts.append([name, seeds, f"{pair.shift(of['Scion'].widths):.3g}"])
    columns = ["method", "width", "log2 rate", "log loss", "deviation of a seed", "log2 best rate"]
    out.table("transfer", columns, rows)
    out.table("shifts", ["method", "seeds", "shift of the best rate per doubling"], shifts)


def picture(widths: Sequence[int], sizes: dict[str, Array], of: dict[str, Curves]) -> Figure:
    """Changes of layer 2 over the width; below, losses over the rate, SP left and Scion right."""
    fig = Figure(figsize=(ONE_COLUMN, 4.6), layout="constrained")
    axes = fig.subplot_mosaic([["changes", "changes"], ["Adam SP", "Scion"]])
    show_changes(axes["changes"], widths, sizes)
    axes["Scion"].sharey(axes["Adam SP"])
    for name in ("Adam SP", "Scion"):
        show_losses(axes[name], name, of[name])
    axes["Adam SP"].set_ylabel("ln of the loss after 60 steps")
    axes["Scion"].tick_params(labelleft=False)
    names = [line for line in axes["Scion"].get_lines() if line.get_marker() != "None"]
    keys = [
        Line2D([], [], color=plot.INK, linestyle=line.get_linestyle(), marker=line.get_marker())
        for line in names
    ]
    fig.legend(keys, [str(line.get_label()) for line in names], loc="outside lower center", ncols=3)
    return fig


def show_changes(ax: Axes, widths: Sequence[int], sizes: dict[str, Array]) -> None:
    n = np.array(widths, dtype=float)
    for name, values in sizes.items():
        colour, line, marker = LOOKS[name]
        means = np.exp2(np.log2(values[:, :, 1]).mean(axis=1))
        ax.plot(n, means, line, color=colour, marker=marker, label=name)
    start = np.exp2(np.log2(sizes["Adam SP"][0, :, 1]).mean())
    for slope, shown in ((0.5, "½"), (1.0, "1")):
        guide = start * (n / n[0]) ** slope
        ax.plot(n, guide, "-", color=plot.INK, linewidth=0.5, zorder=1)
        ax.annotate(f"slope {shown}", (n[-1], guide[-1]), ha="right", va="bottom", fontsize="small")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_ylim(top=3 * start * n[-1] / n[0])
    ax.set_xticks(n, [str(k) for k in widths])
    ax.set_xlabel("width n")
    ax.set_ylabel("RMS change of layer 2 / rate")
    ax.legend(ncols=2)


def show_losses(ax: Axes, name: str, curve: Curves) -> None:
    """Curves of three widths; thin lines of the same dashes stand at their best rates."""
    colour, *_ = LOOKS[name]
    shown = (0, 1, len(curve.widths) - 1)
    for i, line, marker in zip(shown, (":", "--", "-"), "os^", strict=True):
        n, best_rate = curve.widths[i], curve.bests()[i]
        ax.plot(curve.rates, curve.logs()[i], line, color=colour, marker=marker, label=f"n = {n}")
        ax.axvline(best_rate, linestyle=line, color=plot.INK, linewidth=0.8, zorder=1)
    ax.set_title(name)
    ax.set_xticks(list(curve.rates))
    ax.set_xlabel("log2 of the rate")
