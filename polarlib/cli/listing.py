"""The command polarlib schedules, and the table of coefficients."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

import polarlib
from polarlib import published
from polarlib._schedules.targets import TARGETS, parse_target
from polarlib._schedules.validity import NORMALISATIONS
from polarlib.cli import console
from polarlib.cli.console import command, format_number, grid, say, tabulated

MOST_STEPS = 100  # largest value of --steps: more steps take minutes, and no schedule needs them


@command(epilog="Example: polarlib schedules polar_express --steps 8")
def schedules(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE.json",
            help="Print this set, or the schedule of this file, in full.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(max=MOST_STEPS, help="Number of steps of the set NAME.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """List the published coefficient sets, or print one in full."""
    if name is not None:
        _show_schedule(name, steps, as_json)
        return
    if steps is not None:
        raise ValueError("--steps needs the name of a set, as in 'polarlib schedules jordan'")
    sets = [
        _about(known, polarlib.schedule(known), published.listed(known))
        for known in polarlib.schedules()
    ]
    others = [s["name"] for s in sets if s["target"] != "polar"]
    if as_json:
        console.say_json({"schedules": sets})
        return
    say(
        *tabulated(
            [
                ("normalisation", "<", lambda s: s["normalisation"]),
                ("name", "<", lambda s: s["name"]),
                ("steps", ">", lambda s: s["steps"]),
                ("lower", ">", lambda s: short(s["lower"])),
                ("upper", ">", lambda s: f"{s['upper']:g}"),
                ("repeat", "<", lambda s: s["repeat"] or "-"),
                ("slope", ">", lambda s: (short_slope if s["slope"] < 1e5 else short)(s["slope"])),
                ("error", ">", lambda s: short(s["error"])),
                ("diverg.\nabove", ">", lambda s: f"{s['divergence_limit']:.5f}"),
                ("prod-\nucts", ">", lambda s: s["matrix_products"]),
                ("safe\nbf16", "<", lambda s: "yes" if s["safe_in_bfloat16"] else "no"),
                ("safe\nfp16", "<", lambda s: "yes" if s["safe_in_float16"] else "no"),
            ],
            sets,
        ),
        "",
        console.paragraph(
            "Error: the largest |1 - s(x)| for x from lower to upper, each x divided by the set's "
            f"input safety first; for {' and '.join(others)} the difference from the function that "
            "is approximated. Repeat: how the set continues beyond its list, with its last step or "
            "from its beginning. Safe: one rounding cannot move a singular value to where the set "
            "diverges. 'polarlib schedules NAME' prints one set in full."
        ),
    )


def _about(name: str, s: polarlib.Schedule, listed: polarlib.Schedule) -> dict[str, Any]:
    """Return the properties of a schedule, with its listed length and rule of repetition."""
    return {
        "name": name,
        "steps": len(s),
        "steps_listed": len(listed),
        "lower": s.lower,
        "upper": s.upper,
        "normalisation": s.normalisation,
        "input_safety": s.input_safety,
        "target": s.target,
        "repeat": listed.repeat,
        "slope": s.slope,
        "error": s.error(),
        "divergence_limit": s.divergence_limit,
        "matrix_products": s.matmuls,
        "safe_in_bfloat16": s.is_safe_in("bfloat16"),
        "safe_in_float16": s.is_safe_in("float16"),
    }


def _show_schedule(name: str, steps: int | None, as_json: bool) -> None:
    """Print a published set, or the schedule of a file."""
    s = polarlib.schedule(name, steps)
    if name in polarlib.schedules():
        listed, scaling = published.listed(name), published.conventions(name)
    else:
        listed, scaling = polarlib.schedule(name), ""
    about = _about(name, s, listed)
    if s.is_rational:
        images = [s.truncate(k).image() for k in range(1, len(s) + 1)]
    else:  # the first steps alone may not be a valid Schedule
        images = [(row["image_lower"], row["image_upper"]) for row in polarlib.design.table(s)]
    if as_json:
        about |= {"coefficients": s.steps, "images": images, "source": s.source, "scaling": scaling}
        console.say_json(about)
        return
    repeat = {
        None: "which does not repeat",
        "last": "then the last step repeats",
        "forever": "then the list repeats",
    }[about["repeat"]]
    safe = [form for form in ("bfloat16", "float16") if about[f"safe_in_{form}"]]
    divisor = f", and by {s.input_divisor:g}" if s.input_divisor != 1 else ""
    aim = TARGETS[parse_target(s.target)[0]].meaning
    facts = {
        "name": s.name,
        "file": name if name != s.name else "",
        "source": s.source,
        "scaling": scaling,
        "approximates": f"{s.target}: {aim}",
        "steps": f"{len(s)} (the list has {about['steps_listed']}, {repeat})",
        "matrix products": str(s.matmuls),
        "normalisation": f"{s.normalisation}: {NORMALISATIONS[s.normalisation]}{divisor}",
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "error on it": f"{s.error():.6g} at most",
        "slope at 0": short_slope(s.slope),
        "diverges above": f"{s.divergence_limit:.7g}",
        "safe in": ", ".join(safe) or "neither bfloat16 nor float16",
    }
    intervals = [[k, f"{lo:.8g}", f"{hi:.8g}"] for k, (lo, hi) in enumerate(images, 1)]
    say(
        grid((fact, value) for fact, value in facts.items() if value),
        "",
        *coefficients(s),
        "",
        *tabulated(
            console.numbered_columns(["after\nstep", "image of the\ninterval from", "to"]),
            intervals,
        ),
    )


def coefficients(s: polarlib.Schedule) -> list[RenderableType]:
    """Lay out the coefficients with all digits, or the partial fractions of rational steps."""
    if s.is_rational:
        parts: list[list[Any]] = []
        step: Any
        for k, step in enumerate(s.steps, 1):
            for j, (a, c) in enumerate(zip(step.residues, step.poles, strict=True)):
                parts.append([k if j == 0 else "", repr(step.scale) if j == 0 else "", a, c])
        heads = ["step", "scale M", "residues a", "poles c"]
        formula = Text("M (x + sum of a x / (x^2 + c))")
        return [formula, *tabulated(console.numbered_columns(heads), parts)]
    powers = [f"x^{1 + s.stride * i}" for i in range(max(map(len, s.steps)))]
    rows = [
        [k, *(repr(c) for c in step), *[""] * (len(powers) - len(step))]
        for k, step in enumerate(s.steps, 1)
    ]
    return tabulated(console.numbered_columns(["step", *powers]), rows)


def short_slope(x: float) -> str:
    """Format a slope with three digits, or as an integer from 100 to a million."""
    return f"{x:.0f}" if 100 <= abs(x) < 1e6 else f"{x:.3g}"


def short(x: float) -> str:
    """Format a number in full or with two digits, whichever is shorter: 0.5, 1e-3, 5.3e-1."""
    exact = f"{x:g}"
    rounded = format_number(x) if x >= 1e-9 else re.sub("e-0?", "e-", f"{x:.0e}")
    return min(exact, re.sub(r"(\.0)?e[+]?", "e", rounded), key=len)
