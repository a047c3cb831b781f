"""Whether the figures of polarlib.plot can be printed: sizes, legends, grey and colour vision.

    python benchmarks/figures_check.py [--out FOLDER] [--usetex]

Draws every function of `polarlib.plot`, with usual and with extreme data, at the width of a column,
of a page and for slides, and reports

- text outside the figure, legends of 40 % of the Axes or more, text over text, Axes that collapse;
- pairs of lines of one figure that are distinct neither by dashes nor by markers nor by
  colours, for normal vision, in grey, and for three deficiencies of colour vision.

Two colours count as different from `DIFFERENT` in CIE L*a*b* on. Vision is simulated by the
matrices for severity 1 of G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, A physiologically
based model for simulation of color vision deficiency, IEEE Trans. Vis. Comput. Graph. 15 (2009)
1291-1298, in linear RGB. With --out the figures are saved as PNG files, those of the column also as
each vision has them. Exit code 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import polarlib
from polarlib import design, norms, plot

STYLES = ("column", "page", "slide")
DIFFERENT = 12.0  # distance in CIE L*a*b*; 2.3 is just noticeable side by side
LEGEND = 0.4  # share of the Axes
LEAST_AXES = 0.3  # of the width and of the height of the figure
VISIONS: dict[str, Any] = {
    "normal": np.eye(3),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
Draw = Callable[[], Axes]


# -- figures -----------------------------------------------------------------------------------


def traces() -> dict[str, Any]:
    """Traces of usual and of extreme kinds."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 40))
    wide = rng.standard_normal((400, 200))
    one = polarlib.measure(a, "polar_express", precision="bfloat16")
    few = polarlib.measure(np.diag([1.0, 0.3, 0.01]), "jordan", precision="bfloat16")
    factor = np.where(np.arange(one.n_steps + 1) > 3, np.nan, 10.0 ** (6 * np.arange(6)))
    return {
        "one": one,
        "few": few,
        "many": polarlib.measure(wide, "polar_express"),
        "diverging": replace(
            one,
            method="diverging",
            orthogonality=one.orthogonality * factor,
            distance=one.distance * factor,
            singular_values=one.singular_values * factor[:, None],
        ),
        "zeros": replace(
            few,
            method="zeros",
            distance=0 * few.distance,
            singular_values=few.singular_values * [1, 1, 0],
        ),
        "long": replace(one, method="a schedule of a rather long name, " * 4),
        "formats": [
            polarlib.measure(a, "auto", precision=p) for p in ("float32", "bfloat16", "float16")
        ],
        "eight": [polarlib.measure(a, name) for name in polarlib.schedules()[:8]],
        "exact": [polarlib.measure(a, m) for m in ("svd", "newton", "qdwh", "hybrid", "auto")],
    }


@functools.cache
def taken(name: str) -> Any:
    """A trace or a list of traces; all are taken when the first is asked for."""
    return _taken()[name]


_taken = functools.cache(traces)


@functools.cache
def sets() -> dict[str, Any]:
    """Schedules of every kind, and lists of them."""
    clip = polarlib.Schedule(steps=[(1.2, -0.2)], lower=0, upper=2, target="clip", name="clip")
    found = {name: polarlib.schedule(name) for name in polarlib.schedules()[:8]}
    every = list(found.values())
    found |= {name: polarlib.schedule(name) for name in ("polar_express", "jordan")}
    found |= {"rational": design.zolotarev(2, 1e-3), "clip": clip}
    three = [found[name] for name in ("polar_express", "jordan", "rational")]
    return found | {"three": three, "eight": every}


def compared(*names: str) -> Axes:
    """`plot.compare` of traces and of lists of traces."""
    every = [taken(name) for name in names]
    flat = [t for some in every for t in (some if isinstance(some, list) else [some])]
    return plot.compare(flat, quantity="distance")


def several_balls() -> Axes:
    """Three unit balls in one picture."""
    ax = plot.unit_ball(norms.nuclear(), plot.unit_ball(norms.spectral()))
    return plot.unit_ball(norms.f_muon(0.5), ax)


def cases() -> dict[str, Draw]:
    """Every function of polarlib.plot, by what it draws."""
    found: dict[str, Draw] = {}
    for name in ("one", "few", "many", "diverging", "zeros", "long"):
        found[f"convergence-{name}"] = lambda name=name: plot.convergence(taken(name))
        found[f"singular_values-{name}"] = lambda name=name: plot.singular_values(taken(name))
    groups = [("one",), ("formats",), ("eight",), ("one", "diverging", "zeros", "long")]
    for group in [*groups, ("eight", "diverging", "long")]:
        found[f"compare-{'-'.join(group)}"] = lambda group=group: compared(*group)
    for name in ("polar_express", "jordan", "rational", "clip"):
        found[f"polynomial-{name}"] = lambda name=name: plot.polynomial(sets()[name])
    for name in ("polar_express", "jordan", "rational", "clip", "three", "eight"):
        found[f"error-{name}"] = lambda name=name: plot.error(sets()[name])
    for name in ("polar_express", "three", "eight"):
        found[f"matrix_products-{name}"] = lambda name=name: plot.matrix_products(sets()[name])
    return found | {
        "compare-orthogonality": lambda: plot.compare(taken("eight")),
        "cost": lambda: plot.cost(taken("exact")),
        "cost-eight": lambda: plot.cost([*taken("eight")[:4], *taken("exact")[:4]]),
        "cost-seconds": lambda: plot.cost(taken("exact")[:2], seconds=[2.0, 1.0]),
        "polynomial-two": lambda: plot.polynomial(
            sets()["jordan"], plot.polynomial(sets()["polar_express"])
        ),
        "matrix_products-from": lambda: plot.matrix_products(sets()["eight"], lower=1e-2),
        "unit_ball": lambda: plot.unit_ball(norms.spectral()),
        "unit_ball-three": several_balls,
    }


# -- geometry ----------------------------------------------------------------------------------


def written(root: Figure) -> Iterator[Text]:
    """Every text that is drawn: not empty, and no label of a tick beyond the limits."""
    axes = [axis for ax in root.axes for axis in (ax.xaxis, ax.yaxis)]
    every = {id(label) for axis in axes for label in _labels(axis)}
    drawn = {id(label) for axis in axes for label in _labels(axis, drawn=True)}
    for item in root.findobj(Text):
        beyond = id(item) in every - drawn
        if item.get_visible() and item.get_text().strip() and not beyond:
            yield item


def _labels(axis: Any, *, drawn: bool = False) -> list[Text]:
    ticks = axis._update_ticks() if drawn else [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [label for tick in ticks for label in (tick.label1, tick.label2)]


def faults(ax: Axes) -> list[str]:
    """What is wrong with the places of texts, legend and Axes of a figure, once it is drawn."""
    root: Any = ax.figure.canvas.figure
    root.draw_without_rendering()
    whole, found = root.bbox.padded(0.5), []
    boxes: list[tuple[str, Any]] = []
    for item in written(root):
        box = Text.get_window_extent(item)
        if whole.x0 > box.x0 or whole.x1 < box.x1 or whole.y0 > box.y0 or whole.y1 < box.y1:
            found.append(f"text {item.get_text()!r} is outside of the figure")
        boxes.append((item.get_text(), box))
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        if a.padded(-1.0).overlaps(b.padded(-1.0)):
            found.append(f"text {one!r} is over text {other!r}")
    inner = ax.get_window_extent()
    if ax.get_legend() is not None:
        box = ax.get_legend().get_window_extent()
        share = box.width * box.height / (inner.width * inner.height)
        if share >= LEGEND:
            found.append(f"the legend has {share:.0%} of the Axes")
        if not (whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0):
            found.append("the legend is outside of the figure")
    if inner.width < LEAST_AXES * root.bbox.width or inner.height < LEAST_AXES * root.bbox.height:
        found.append(
            f"the Axes have {inner.width / root.bbox.width:.0%} of the width and "
            f"{inner.height / root.bbox.height:.0%} of the height"
        )
    return found


# -- colours -----------------------------------------------------------------------------------


def linear(rgb: Any) -> np.ndarray:
    """Linear RGB of sRGB (IEC 61966-2-1)."""
    rgb = np.asarray(rgb, dtype=float)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def encoded(rgb: np.ndarray) -> np.ndarray:
    """SRGB of linear RGB."""
    rgb = np.clip(rgb, 0, 1)
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def seen(rgb: Any, vision: str) -> np.ndarray:
    """Linear RGB of a colour, or of the pixels of a picture, as a vision has it."""
    return np.clip(linear(rgb) @ np.asarray(VISIONS[vision]).T, 0, 1)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, for the white of sRGB (D65)."""
    matrix = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = (rgb @ matrix.T) / matrix.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])]
    )


def alike(ax: Axes) -> list[str]:
    """Return pairs of named lines that look alike to a vision."""
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    lines = [line for line in lines if len(line.get_xdata()) and line.get_linestyle() != "None"]
    found = []
    for one, other in itertools.combinations(lines, 2):
        if _dash(one) != _dash(other) or one.get_marker() != other.get_marker():
            continue
        for vision in VISIONS:
            ends = [lab(seen(to_rgb(line.get_color()), vision)) for line in (one, other)]
            if np.linalg.norm(ends[0] - ends[1]) < DIFFERENT:
                found.append(f"{one.get_label()!r} is like {other.get_label()!r} in {vision}")
    return found


def _dash(line: Any) -> Any:
    # The public name of a pattern of numbers is that of "--".
    return line._unscaled_dash_pattern


# -- the report --------------------------------------------------------------------------------


def save(ax: Axes, folder: Path, name: str, visions: bool) -> None:
    """Write the PNG, and how each vision has it."""
    path = folder / f"{name}.png"
    plot.save(ax, path, dpi=200)
    if visions:
        image = matplotlib.image.imread(path)[..., :3]
        for vision in list(VISIONS)[1:]:
            matplotlib.image.imsave(folder / f"{name}-{vision}.png", encoded(seen(image, vision)))


def check(style: str, out: Path | None, usetex: bool) -> Iterator[str]:
    """Draw every figure in a style; its faults."""
    with plot.style(style), matplotlib.rc_context({"text.usetex": usetex}):
        for name, draw in cases().items():
            ax = draw()
            for fault in faults(ax) + alike(ax):
                yield f"{style}, {name}: {fault}"
            if out is not None:
                save(ax, out, f"{style}-{name}", visions=style == "column")


def main() -> None:
    """Run the check from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to save the figures")
    parser.add_argument("--usetex", action="store_true", help="set text by LaTeX")
    options = parser.parse_args()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    found = [f for style in STYLES for f in check(style, options.out, options.usetex)]
    count = len(STYLES) * len(cases())
    sys.stdout.write("\n".join([*found, f"{count} figures, {len(found)} faults"]) + "\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
