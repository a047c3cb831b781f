"""explorer.html: one page on which a reader changes a schedule and sees its polynomials.

    python docs/make_explorer.py [OUT.html]

designs the schedules of every number format, degree, lower end and number of steps, as
`polarlib.design.for_precision` does, and writes them into a page that loads nothing else. Bokeh
draws the figures; docs/explorer/explorer.js evaluates the polynomials.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import polarlib
from polarlib._extras import require
from polarlib._schedules.products import product_counts
from polarlib._schedules.schedule import Schedule
from polarlib.arrays.formats import format_of
from polarlib.design.budget import schedule_of
from polarlib.design.doubles import BeyondDoublesError
from polarlib.design.rounding import Rounding, first_state, last_step, next_step
from polarlib.files.whole import write_whole

require("docs/make_explorer.py", "docs", "bokeh", "jinja2")

import bokeh  # noqa: E402
import jinja2  # noqa: E402
from bokeh.embed import json_item  # noqa: E402
from bokeh.models import BoxAnnotation, ColumnDataSource, FixedTicker, Span  # noqa: E402
from bokeh.plotting import figure  # noqa: E402
from bokeh.resources import Resources  # noqa: E402

HERE = Path(__file__).parent / "explorer"
FORMATS = ("float64", "float32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2")
DEGREES = {d: sum(product_counts([(0.0,) * (d // 2 + 1)])) for d in (3, 5, 7, 9)}
LOWER = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5)
MOST_PRODUCTS = 24
# Part of the unit roundoff at which more steps change nothing, and below which l is not offered.
ENOUGH = Fraction(1, 16)
LEAST = Fraction(1, 32)
FIGURES: tuple[dict[str, Any], ...] = (
    {
        "name": "polynomials",
        "title": "Last step and composition",
        "caption": "The composition maps x in [0, 1]. The last step is drawn on the interval that "
        "the steps before it reach.",
        "x": "singular value before",
        "y": "singular value after",
    },
    {
        "name": "image",
        "title": "Image of [l, 1]",
        "caption": "All values to the right of the dashed line end in the shaded band. The axis "
        "begins at l / 10: smaller values are multiplied by nearly the slope.",
        "x": "singular value of the input",
        "y": "singular value of the result",
        "log": "x",
    },
    {
        "name": "error",
        "title": "Error and its extrema",
        "caption": "The difference s(x) − 1 in exact arithmetic on [l, 1]. Dashed lines mark "
        "the worst error, circles the extrema, if there are at most 300.",
        "x": "singular value of the input",
        "y": "error s(x) − 1",
        "log": "x",
    },
    {
        "name": "cost",
        "title": "Bound against matrix products",
        "caption": "Bound of the error with rounding, for every number of steps at this l and in "
        "this format. The ring marks the schedule that is shown.",
        "x": "matrix products",
        "y": "bound of the error",
        "log": "y",
    },
)
# Colours are in explorer.js, for light and dark screens.
MARKERS = {3: "triangle", 5: "circle", 7: "diamond", 9: "square"}


# -- schedules -------------------------------------------------------------------------------


def designs(
    formats: Sequence[str] = FORMATS,
    degrees: Sequence[int] = tuple(DEGREES),
    lower: Sequence[float] = LOWER,
) -> dict[str, Any]:
    """Return the schedules and what polarlib computes of them, as the page contains them.

    Returns
    -------
    dict
        ``["designs"][format][degree]`` has an entry per lower end that the format can have: steps
        that are not the last, last steps by number of steps, worst errors, bounds with rounding
        (None where a singular value may reach 0), and the intervals after each step, exact and with
        rounding.
    """
    units = {name: format_of(name).unit_roundoff for name in formats}
    return {
        "lower": list(lower),
        "products": {str(d): DEGREES[d] for d in degrees},
        "formats": {
            name: {"unit": unit, "unit_text": _power_of_two(unit)} for name, unit in units.items()
        },
        "designs": {
            name: {
                str(d): [_chain(name, d, l) for l in lower if l >= LEAST * units[name]]
                for d in degrees
            }
            for name in formats
        },
    }


def _chain(name: str, degree: int, lower: float) -> dict[str, list[Any]]:
    """The schedules of one degree on [lower, 1], by number of steps."""
    f = Rounding.of(format_of(name))
    found: dict[str, list[Any]] = {
        key: [] for key in ("inner", "last", "error", "bound", "between", "after")
    }
    state = first_state(lower, f)
    most = MOST_PRODUCTS // DEGREES[degree]
    for k in range(1, most + 1):
        try:
            error, done = last_step(state, degree, f)
            schedule = schedule_of(done, f, lower)
            found["last"].append(list(done.steps[-1]))
            found["after"].append(_interval(done))
            found["error"].append(_short(schedule.error()))
            found["bound"].append(_bound(schedule, name))
            if error <= ENOUGH * f.unit or k == most:
                break
            state = next_step(state, degree, f)
        except BeyondDoublesError:
            break
        found["inner"].append(list(state.steps[-1]))
        found["between"].append(_interval(state))
    # Inner steps that no schedule has.
    used = len(found["last"]) - 1
    return found | {"inner": found["inner"][:used], "between": found["between"][:used]}


def _bound(schedule: Schedule, name: str) -> float | None:
    try:
        return _short(schedule.certify(format=name).upper)
    except ValueError:  # rounding can take a singular value to 0
        return None


def _interval(state: Any) -> list[float]:
    """Ends of the interval after the steps of a state, exact and with rounding."""
    return [_short(v) for v in (*state.exact, state.lower, state.upper)]


def _short(value: float) -> float:
    """A number for display."""
    return float(f"{value:.8g}")


def _power_of_two(unit: float) -> str:
    exponent = str(round(math.log2(unit))).replace("-", "⁻")
    return "2" + exponent.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


# -- page ------------------------------------------------------------------------------------


def _plot(name: str, x: str, y: str, log: str = "", **_: str) -> dict[str, Any]:
    """A figure of Bokeh without data, as JSON."""
    fig = figure(
        sizing_mode="stretch_both",
        toolbar_location=None,
        output_backend="svg",
        x_axis_label=x,
        y_axis_label=y,
        x_axis_type="log" if log == "x" else "linear",
        y_axis_type="log" if log == "y" else "linear",
        x_range=(0.01, 1),
        y_range=(0.01, 1),
        tools="",
    )
    for axis in {"x": fig.xaxis, "y": fig.yaxis}.get(log, []):
        axis.ticker = FixedTicker(ticks=[])  # explorer.js sets them with the range

    def line(role: str, **style: Any) -> None:
        source = ColumnDataSource({"x": [], "y": []}, name=role)
        fig.line("x", "y", source=source, name=role, **style)

    def marks(role: str, marker: str, **style: Any) -> None:
        source = ColumnDataSource({"x": [], "y": []}, name=role)
        fig.scatter("x", "y", source=source, name=role, marker=marker, **style)

    if name in ("polynomials", "image"):
        fig.add_layout(BoxAnnotation(bottom=1, top=1, name="band", line_alpha=0, level="underlay"))
    if name == "image":
        fig.add_layout(Span(location=0.1, dimension="height", line_dash="dashed", name="end"))
    if name == "error":
        for side in ("above", "below"):
            fig.add_layout(Span(location=0, dimension="width", line_dash="dashed", name=side))
    if name == "cost":
        for degree, marker in MARKERS.items():
            role = f"degree {degree}"
            source = ColumnDataSource({"x": [], "y": []}, name=role)
            style = {"source": source, "legend_label": role, "name": role}
            fig.line("x", "y", line_width=1.5, **style)
            fig.scatter("x", "y", marker=marker, size=7, **style)
        marks("chosen", "circle", size=18, fill_alpha=0, line_width=2)
        fig.legend.location = "bottom_left"
    else:
        label = {} if name != "polynomials" else {"legend_label": "composition"}
        line("composition", line_width=2, **label)
    if name == "polynomials":
        line("last step", line_width=2, line_dash="dashed", legend_label="last step")
        fig.legend.location = "bottom_right"
    if name == "error":
        marks("extrema", "circle", size=5)
    return json_item(fig)


def _script(text: str) -> str:
    """JSON for a script element."""
    return text.replace("</", r"<\/").replace("<!--", r"<\!--")


def page(data: Mapping[str, Any], links: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page.

    Parameters
    ----------
    data : mapping
        From :func:`designs`.
    links : sequence of (address, label), optional
        Links to other pages, for the navigation.
    """
    environment = jinja2.Environment(  # texts are polarlib's own
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    shared = resources.files("polarlib").joinpath("data", "page.css").read_text(encoding="utf-8")
    plots = {entry["name"]: _plot(**entry) for entry in FIGURES}
    # Bokeh's core alone: the controls are the browser's.
    library = Resources(mode="inline", components=["bokeh"], log_level="error").render_js()
    text = (HERE / "page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        version=polarlib.__version__,
        bokeh=bokeh.__version__,
        style=shared + (HERE / "explorer.css").read_text(encoding="utf-8"),
        links=links,
        degrees=data["products"],
        formats=data["formats"],
        figures=FIGURES,
        most=MOST_PRODUCTS,
        part=ENOUGH,
        least=LEAST,
        designs=_script(json.dumps(data, separators=(",", ":"))),
        plots=_script(json.dumps(plots, separators=(",", ":"))),
        library=library,
        script=(HERE / "explorer.js").read_text(encoding="utf-8"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("explorer.html"))
    options = parser.parse_args()
    content = page(designs()).encode()
    write_whole(options.out, lambda file: file.write(content))


if __name__ == "__main__":
    main()
