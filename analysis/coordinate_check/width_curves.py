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
    """Mean log loss[width, rate] of a method, with log2 of the rates."""

    widths: Sequence[int]
    rates: Sequence[float]
    logs: Array

    def bests(self) -> list[float]:
        return [best(self.rates, logs) for logs in self.logs]

    def shift(self, widths: Sequence[int]) -> float:
        """Of the best rate, in octaves per doubling of the width."""
        chosen = [self.widths.index(n) for n in widths]
        return float(np.polyfit(np.log2(widths), np.array(self.bests())[chosen], 1)[0])


def mean_rows(name: str, widths: Sequence[int], sizes: Array) -> list[list[object]]:
    """Rows of a table: geometric means over seeds of sizes[width, seed, feature]."""
    means = np.exp2(np.log2(sizes).mean(axis=1))
    return [[name, n, *(f"{v:.6g}" for v in row)] for n, row in zip(widths, means, strict=True)]


def tables(
    out: Output, widths: Sequence[int], sizes: dict[str, Array], of: dict[str, Curves]
) -> None:
    """All values that the picture shows, and more."""
    rows: list[list[object]] = []
    for name, values in sizes.items():
        rows += mean_rows(name, widths, values)
    out.table("changes", ["method", "width", "layer 1", "layer 2", "scores"], rows)
    rows = []
    for name, curve in of.items():
        for n, logs, log_rate in zip(curve.widths, curve.logs, curve.bests(), strict=True):
            rows += [
                [name, n, rate, f"{v:.6g}", f"{log_rate:.4g}"]
                for rate, v in zip(curve.rates, logs, strict=True)
            ]
    out.table("transfer", ["method", "width", "log2 rate", "log loss", "log2 best rate"], rows)


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
        ax.plot(curve.rates, curve.logs[i], line, color=colour, marker=marker, label=f"n = {n}")
        ax.axvline(best_rate, linestyle=line, color=plot.INK, linewidth=0.8, zorder=1)
    ax.set_title(name)
    ax.set_xticks(list(curve.rates))
    ax.set_xlabel("log2 of the rate")
