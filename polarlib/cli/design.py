"""polarlib design and polarlib schedules."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

import polarlib
from polarlib import published
from polarlib._schedules.export import Kind
from polarlib._schedules.targets import TARGETS, parse_target
from polarlib._schedules.validity import NORMALISATIONS
from polarlib.cli import console
from polarlib.cli.console import command, format_number, grid, say, tabulated
from polarlib.files.whole import write_whole

# Limits of options: larger values take minutes, and no schedule needs them.
MOST_STEPS, MOST_MATMULS, MOST_DEGREE = 100, 300, 101


# -- schedules -------------------------------------------------------------------------------


@command(epilog="Example: polarlib schedules polar_express --steps 8")
def schedules(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this one in full.", show_default=False),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(max=MOST_STEPS, help="Number of steps of the one.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Published coefficient sets, or one of them in full."""
    if name is not None:
        _show_schedule(name, steps, as_json)
        return
    if steps is not None:
        raise ValueError("--steps is for one set: name it, as in 'polarlib schedules jordan'")
    sets = [_about(known, None) for known in polarlib.schedules()]
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
                ("lower", ">", lambda s: _short(s["lower"])),
                ("upper", ">", lambda s: f"{s['upper']:g}"),
                ("repeat", "<", lambda s: s["repeat"] or "-"),
                ("slope", ">", lambda s: (_slope if s["slope"] < 1e5 else _short)(s["slope"])),
                ("error", ">", lambda s: _short(s["error"])),
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
            f"input safety first; of {' and '.join(others)} the difference from the function that "
            "is approximated. Repeat: whether the set goes "
            "on, with its last step or from its beginning. Safe: one rounding cannot push a "
            "singular value to where the set diverges. 'polarlib schedules NAME' tells more."
        ),
    )


def _about(name: str, steps: int | None) -> dict[str, Any]:
    """The figures of a published set, with its listed length and rule of repetition."""
    s, listed = polarlib.schedule(name, steps), published.listed(name)
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
    s, about = polarlib.schedule(name, steps), _about(name, steps)
    scaling = published.conventions(name)
    images = [(row["image_lower"], row["image_upper"]) for row in polarlib.design.table(s)]
    if as_json:
        about |= {"coefficients": s.steps, "images": images, "source": s.source, "scaling": scaling}
        console.say_json(about)
        return
    repeat = {
        None: "not beyond",
        "last": "then its last step again and again",
        "forever": "then again from its beginning",
    }[about["repeat"]]
    safe = [form for form in ("bfloat16", "float16") if about[f"safe_in_{form}"]]
    divisor = f", and by {s.input_divisor:g}" if s.input_divisor != 1 else ""
    aim = TARGETS[parse_target(s.target)[0]].meaning
    facts = {
        "name": name,
        "source": s.source,
        "scaling": scaling,
        "approximates": f"{s.target}: {aim}",
        "steps": f"{len(s)} (the list has {about['steps_listed']}, {repeat})",
        "matrix products": str(s.matmuls),
        "normalisation": f"{s.normalisation}: {NORMALISATIONS[s.normalisation]}{divisor}",
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "error on it": f"{s.error():.6g} at most",
        "slope at 0": _slope(s.slope),
        "diverges above": f"{s.divergence_limit:.7g}",
        "safe in": ", ".join(safe) or "neither bfloat16 nor float16",
    }
    intervals = [[k, f"{lo:.8g}", f"{hi:.8g}"] for k, (lo, hi) in enumerate(images, 1)]
    say(
        grid(facts.items()),
        "",
        *_coefficients(s),
        "",
        *tabulated(
            console.numbered_columns(["after\nstep", "image of the\ninterval from", "to"]),
            intervals,
        ),
    )


def _coefficients(s: polarlib.Schedule) -> list[RenderableType]:
    """A table of the coefficients, all digits."""
    powers = [f"x^{1 + s.stride * i}" for i in range(max(map(len, s.steps)))]
    rows = [
        [k, *(repr(c) for c in step), *[""] * (len(powers) - len(step))]
        for k, step in enumerate(s.steps, 1)
    ]
    return tabulated(console.numbered_columns(["step", *powers]), rows)


# -- design ----------------------------------------------------------------------------------

# Endings of files that a schedule is exported to, and the kind of their text; also JSON.
EXPORTS: dict[str, Kind] = {".py": "python", ".h": "c", ".cuh": "cuda", ".tex": "latex"}


@command(epilog="Example: polarlib design --lower 1e-3 --matmuls 15 --precision bfloat16")
def design(
    lower: Annotated[
        float, typer.Option(help="Smallest singular value that the schedule is to bring to 1.")
    ],
    upper: Annotated[float, typer.Option(help="Largest one.")] = 1.0,
    matmuls: Annotated[
        int | None,
        typer.Option(max=MOST_MATMULS, help="Matrix products that may be spent: the best degrees."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(max=MOST_STEPS, help="Number of degree-5 steps, instead of --matmuls."),
    ] = None,
    degrees: Annotated[
        str | None, typer.Option(help="Degree of each step, such as 3,5,5, instead of --matmuls.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Safe against the rounding of this number format."),
    ] = None,
    safety: Annotated[
        float,
        typer.Option(
            help="Each step tolerates inputs up to 1 + safety times its upper end; with --steps or "
            "--degrees."
        ),
    ] = 0.0,
    cushion: Annotated[
        float,
        typer.Option(
            help="Each step is designed on an interval whose lower end is at least this share of "
            "its upper end; with --steps or --degrees."
        ),
    ] = 0.0,
    name: Annotated[str | None, typer.Option(help="What to call the schedule.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png, .pdf or .svg.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help=f"Write to this .json, {', '.join(EXPORTS)} or _triton.py file."),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Design a schedule for an interval, a budget, a number format."""
    console.check_outputs({"--plot": plot}, console.PICTURES)
    console.check_outputs({"--export": export}, (".json", *EXPORTS))
    s = _designed(lower, upper, matmuls, steps, degrees, precision, safety, cushion)
    if name is not None:
        s = dataclasses.replace(s, name=name)
    rows = polarlib.design.table(s)
    certificate = s.certify()
    if plot is not None:
        from polarlib.plot import polynomial

        picture = functools.partial(console.save_picture, polynomial(s), plot)
        console.write_named({"--plot": plot}, picture)
    if export is not None:
        console.write_named({"--export": export}, functools.partial(_export, s, export))
    if as_json:
        document = s.to_dict() | {"table": rows, "certificate": dataclasses.asdict(certificate)}
        console.say_json(document | {"plot_file": plot, "export_file": export})
        return
    facts = {
        "name": s.name,
        "source": s.source,
        "matrix products": str(s.matmuls),
        "normalisation": s.normalisation,
        "interval": f"[{s.lower:g}, {s.upper:g}]",
        "error on it": f"{s.error():.6g}",
        # 17 digits determine a double; bounds that are rounded further may not hold.
        "certified": f"between {certificate.lower:.17g} and {certificate.upper:.17g}",
        "slope at 0": _slope(s.slope),
        "diverges above": f"{s.divergence_limit:.7g}",
    }
    say(
        grid(facts.items()),
        "",
        *tabulated(
            [
                ("step", ">", lambda row: row["step"]),
                ("degree", ">", lambda row: row["degree"]),
                ("from", ">", lambda row: f"{row['lower']:.5g}"),
                ("to", ">", lambda row: f"{row['upper']:.6g}"),
                ("image\nfrom", ">", lambda row: f"{row['image_lower']:.5g}"),
                ("to", ">", lambda row: f"{row['image_upper']:.6g}"),
                ("error", ">", lambda row: f"{row['error']:.4g}"),
                ("noise\ngain", ">", lambda row: f"{row['noise_gain']:.3g}"),
                ("slope", ">", lambda row: _slope(row["slope"])),
                ("prod-\nucts", ">", lambda row: row["products"]),
            ],
            rows,
        ),
        "",
        *_coefficients(s),
    )
    for path in filter(None, (plot, export)):
        say(f"Written to {path}.")


def _designed(
    lower: float,
    upper: float,
    matmuls: int | None,
    steps: int | None,
    degrees: str | None,
    precision: str | None,
    safety: float,
    cushion: float,
) -> polarlib.Schedule:
    """Call the function of the library that designs for what was given."""
    given = {"--matmuls": matmuls, "--steps": steps, "--degrees": degrees}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"give one of {', '.join(given)}, got {' and '.join(named) or 'none of them'}"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    free = degrees is None and not (safety or cushion)
    if precision is not None and free and upper == 1:
        return polarlib.design.for_precision(precision, lower, steps=steps, matmuls=matmuls)
    if precision is not None:
        raise ValueError(
            "--precision derives degrees, safety and cushion for [lower, 1] by itself: leave "
            "--degrees, --safety, --cushion and --upper out"
        )
    if matmuls is not None:
        if safety or cushion:
            raise ValueError("--safety and --cushion go with --steps or --degrees")
        return polarlib.design.budget(lower, matmuls, upper=upper)
    try:
        listed = [5] * steps if steps else [int(d) for d in str(degrees).split(",")]
    except ValueError:
        raise ValueError(
            f"--degrees must be odd numbers with commas between, such as 3,5,5, got {degrees!r}"
        ) from None
    if len(listed) > MOST_STEPS or max(listed) > MOST_DEGREE:
        raise ValueError(
            f"--degrees must be at most {MOST_STEPS} numbers up to {MOST_DEGREE}, got {degrees!r}"
        )
    return polarlib.design.greedy(lower, listed, upper=upper, safety=safety, cushion=cushion)


def _export(s: polarlib.Schedule, path: Path) -> None:
    """Write a schedule in the format of the ending of the file."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        s.to_json(path)
        return
    kind: Kind = "triton" if path.name.lower().endswith("_triton.py") else EXPORTS[suffix]
    text = s.to_code(kind).encode()
    write_whole(path, lambda file: file.write(text))


def _slope(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _short(x: float) -> str:
    """At most two digits where all of them take more space: 0, 0.5, 1e-3, 5.3e-1, 3e-16."""
    exact = f"{x:g}"
    rounded = format_number(x) if x >= 1e-9 else re.sub("e-0?", "e-", f"{x:.0e}")
    return min(exact, re.sub(r"(\.0)?e[+]?", "e", rounded), key=len)
