"""The picture of the study: chi_q over q, and iterations over the rank."""

from __future__ import annotations

import numpy as np
from common import Figure, panels
from matplotlib.axes import Axes

from polarlib import plot

# Colour and marker of the methods that are shown.
LOOK = {
    "gradient descent": (plot.INK, "D"),
    "Taylor kappa 2, q = 1": (plot.VERMILLION, "^"),
    "Taylor kappa 2, q = 5": (plot.BLUE, "s"),
    "Muon": (plot.GREEN, "o"),
}
RANKS = (4, 16, 64, 256)
HOLLOW = {"markerfacecolor": "white", "linewidth": 0.9}


def draw_chi(ax: Axes, curves: dict[int, list[tuple[float, float]]]) -> None:
    """chi_q - 1, solid, and its bound, dashed, by kappa."""
    colours = (plot.VERMILLION, plot.BLUE, plot.GREEN)
    for (kappa, points), colour, marker in zip(curves.items(), colours, "osD", strict=True):
        exact, bound = np.transpose(points)
        q = np.arange(len(exact))
        ax.semilogy(q, exact, color=colour, marker=marker, label=rf"$\kappa$ = {kappa}")
        ax.semilogy(q, bound, "--", color=colour, marker=marker, **HOLLOW)
    ax.plot([], [], "--o", color=plot.INK, label="bound (Theorem 2)", **HOLLOW)
    ax.set(xlabel="steps q", ylabel=r"$\chi_q - 1$", ylim=(1e-9, 30), xticks=q)
    ax.set_title(r"$\sigma_{\min}$ = 0.1")
    ax.legend(loc="lower left")


def draw_ranks(ax: Axes, zero: dict[str, list[float]], random: dict[str, list[float]]) -> None:
    """Iterations over the rank from start 0, solid, and from random starts, dotted."""
    for name, (colour, marker) in LOOK.items():
        label = name.replace("kappa", r"$\kappa$ =").replace("Muon", "exact polar factor")
        ax.loglog(RANKS, zero[name], color=colour, marker=marker, label=label)
        ax.loglog(RANKS, random[name], ":", color=colour, marker=marker, **HOLLOW)
    ax.plot([], [], ":o", color=plot.INK, label="the same, random start", **HOLLOW)
    ax.set_xscale("log", base=2)
    ax.set_xticks(RANKS, map(str, RANKS))
    ax.set(xlabel="rank r", ylabel="iterations", ylim=(6, 9000))
    ax.legend(loc="upper left", ncols=2)


def picture(
    curves: dict[int, list[tuple[float, float]]],
    zero: dict[str, list[float]],
    random: dict[str, list[float]],
) -> Figure:
    """Both, one above the other."""
    fig, (upper, lower) = panels(rows=2, height=5.0)
    draw_chi(upper, curves)
    draw_ranks(lower, zero, random)
    return fig
