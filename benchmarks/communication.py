"""What layouts over devices send: predictions, and collectives counted in programs.

    python benchmarks/communication.py --json docs/data/communication.json
    python benchmarks/communication.py --markdown docs/evidence/communication.md

The first command counts the collectives of communication_programs.py, on 2 to 8 simulated devices
of JAX and in 2 and 4 processes of torch (about ten minutes on one core), and computes predictions.
The second one writes the tables of the page, and the figure in docs/figures, from the file. Nothing
is timed.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib
import typer
from common import replace_part, table
from communication_programs import FRACTION, PERIOD, rank_of
from matplotlib.figure import Figure

import polarlib
from polarlib import plot
from polarlib.files.whole import write_whole

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data" / "communication.json"
PAPERS = ROOT / "docs" / "data" / "papers.json"
FIGURES = ROOT / "docs" / "figures"
PROGRAMS = Path(__file__).with_name("communication_programs.py")
LIMIT = 900  # seconds for the programs of one case

# Library, devices, shape, number format of the programs.
CASES = (
    *(("jax", n, shape, "float32") for n in (2, 4, 8) for shape in ("64x16", "16x64", "32x32")),
    *(("torch", n, shape, "float32") for n in (2, 4) for shape in ("64x16", "16x64")),
    *(("torch", n, shape, "bfloat16") for n in (2, 4) for shape in ("64x16", "32x32")),
)
# The cases whose counts the page has in full.
SHOWN = (["jax", 8, "64x16", "float32"], ["torch", 4, "64x16", "bfloat16"])
# Of the predictions.
SHAPES = ((4096, 4096), (16384, 4096), (53248, 16384), (65536, 1024), (65536, 65536))
DEVICES = (8, 64, 512, 4096)
# Layouts and forms of the predictions.
LAYOUTS = (
    *(("replicated", "gram"), ("owner", "gram"), ("gather", "gram"), ("all_to_all", "gram")),
    *(("rows", "gram"), ("rows", "plain"), ("block_periodic", "gram"), ("block", "gram")),
    *(("dion", "gram"), ("dion2", "gram")),
)
FORMATS = ("bfloat16", "float16", "float32", "float64")
LONG_PERIOD = 5  # MuonBP's, in predictions
MLP, BLOCKS = (16384, 53248), 8  # of Llama 3 405B, in MuonBP's table of operations
RATIOS = (1, 2, 4, 8, 16)  # of the figure
IN_FIGURE = 8  # devices


def arguments(layout: str, shape: tuple[int, int], period: int) -> dict[str, Any]:
    """Return the argument that a layout needs."""
    needed: dict[str, dict[str, Any]] = {
        "block_periodic": {"period": period},
        "dion": {"rank": rank_of(shape)},
        "dion2": {"fraction": FRACTION},
    }
    return needed.get(layout, {})


def predict(
    shape: tuple[int, int], layout: str, devices: int, *, period: int = LONG_PERIOD, **how: Any
) -> Any:
    """Return polarlib.communication with the argument that the layout needs."""
    more = arguments(layout, shape, period)
    return polarlib.communication(shape, layout=layout, devices=devices, **more, **how)


# -- data ------------------------------------------------------------------------------------


def count(library: str, devices: int, shape: str, dtype: str) -> list[dict[str, Any]]:
    """Return the counts of every program of one case, with the predictions."""
    command = [sys.executable, str(PROGRAMS), library, str(devices), shape, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    case = {"library": library, "devices": devices, "shape": shape, "dtype": dtype}
    return [case | row for row in json.loads(done.stdout)]


def predicted(row: dict[str, Any]) -> Any:
    """Return the prediction for a count."""
    m, n = map(int, row["shape"].split("x"))
    how = {"form": row["form"]} if row["form"] else {}
    return predict(
        (m, n), row["layout"], row["devices"], period=PERIOD, precision=row["dtype"], **how
    )


def agrees(row: dict[str, Any]) -> bool:
    """Return whether a count equals the prediction in number and in bytes."""
    p = predicted(row)
    return all(math.isclose(row[k], getattr(p, k), abs_tol=1e-9) for k in ("collectives", "bytes"))


def predictions() -> list[dict[str, Any]]:
    """Return bytes and operations of every layout, for large matrices and many devices."""
    rows = []
    for shape in SHAPES:
        for devices in DEVICES:
            for layout, form in LAYOUTS:
                work = predict(shape, layout, devices, form=form)
                what = {"shape": list(shape), "devices": devices, "layout": layout, "form": form}
                rows.append(what | {"bytes": work.bytes, "flops": work.flops})
    return rows


def crossings() -> list[dict[str, Any]]:
    """Return the ratio of the sides above which sums of Gram matrices send less than a gathering.

    Both amounts are powers of the ratio, so that one shape determines it.
    """
    rows = []
    for precision in FORMATS:
        for form in ("gram", "plain"):
            gather = predict((64, 64), "gather", 8, precision=precision)
            work = predict((64, 64), "rows", 8, precision=precision, form=form)
            ratio = work.bytes / gather.bytes
            what = {"precision": precision, "form": form, "sums": int(work.collectives)}
            rows.append(what | {"ratio": ratio})
    return rows


def operations() -> list[float]:
    """Return operations of the whole factor over those of 8 blocks: of columns, of rows."""
    m, n = MLP
    whole = predict(MLP, "replicated", BLOCKS, form="plain").flops
    columns = predict(MLP, "block", BLOCKS, form="plain").flops
    rows = predict((m // BLOCKS, n), "replicated", 1, form="plain").flops
    return [whole / (BLOCKS * part) for part in (columns, rows)]


def collect() -> dict[str, Any]:
    """Count and predict."""
    counted = []
    for case in CASES:
        rows = count(*case)
        bad = [row for row in rows if not agrees(row)]
        for row in bad:
            sys.stderr.write(f"counted {row}\npredicted {predicted(row)}\n")
        sys.stderr.write(f"{' '.join(map(str, case))}: {len(rows) - len(bad)} of {len(rows)}\n")
        counted += rows
    return {
        "versions": {name: metadata.version(name) for name in ("jax", "torch")},
        "counted": counted,
        "predicted": predictions(),
        "crossings": crossings(),
        "operations": operations(),
    }


def load(path: Path) -> dict[str, Any]:
    """Return the data."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


# -- page ------------------------------------------------------------------------------------


def crossing_table(data: dict[str, Any]) -> str:
    """Return the ratios above which sums of Gram matrices send less than a gathering."""
    rows = []
    for precision in FORMATS:
        found = {r["form"]: r for r in data["crossings"] if r["precision"] == precision}
        cells = [f"{found[form][key]:g}" for form in ("gram", "plain") for key in ("sums", "ratio")]
        rows.append([precision, *cells])
    header = ["format", "sums, Gram form", "m/n above", "sums, plain form", "m/n above"]
    return table(header, rows)


class Column(NamedTuple):
    """A column of the tables of predictions."""

    layout: str
    form: str = "gram"

    @property
    def title(self) -> str:
        return f"{self.layout}, {self.form}" if self.layout == "rows" else self.layout


SENT = [Column("gather"), Column("all_to_all"), Column("rows"), Column("rows", "plain")]
SENT += [Column("block_periodic"), Column("dion"), Column("dion2")]
WORK = [Column("replicated"), Column("owner"), Column("rows"), Column("rows", "plain")]
WORK += [Column("block"), Column("dion"), Column("dion2")]


def short(x: float) -> str:
    """Return three digits, without an exponent for large numbers."""
    return f"{float(f'{x:.3g}'):.0f}" if x >= 1000 else f"{x:.3g}"


def prediction_table(data: dict[str, Any], key: str, columns: list[Column], unit: float) -> str:
    """Return one quantity of the predictions."""
    found = {
        (*r["shape"], r["devices"], r["layout"], r["form"]): r[key] / unit
        for r in data["predicted"]
    }
    rows = [
        [f"{m} x {n}", str(devices)]
        + [short(found[m, n, devices, c.layout, c.form]) for c in columns]
        for m, n in SHAPES
        for devices in DEVICES
    ]
    return table(["matrix", "N", *(c.title for c in columns)], rows)


def counted_table(data: dict[str, Any]) -> str:
    """Return counts and predictions of two cases, and how many programs of a kind agree."""
    rows = []
    for row in data["counted"]:
        if [row[k] for k in ("library", "devices", "shape", "dtype")] not in SHOWN:
            continue
        if row["form"] == "plain" and row["layout"] != "rows":  # as the Gram form
            continue
        p, what = predicted(row), [row[k] for k in ("library", "layout", "form")]
        same = [r for r in data["counted"] if [r[k] for k in ("library", "layout", "form")] == what]
        rows.append(
            [
                f"{row['library']}, {row['devices']}, {row['dtype']}",
                Column(*what[1:]).title,
                f"{row['collectives']:g} / {p.collectives:g}",
                f"{row['bytes']:g} / {p.bytes:g}",
                f"{sum(map(agrees, same))} of {len(same)}",
            ]
        )
    header = ["library, N, format", "layout, form", "collectives, counted / predicted"]
    header += ["bytes, counted / predicted", "programs that agree, all cases"]
    return table(header, rows)


def published_table(data: dict[str, Any], studied: dict[str, Any]) -> str:
    """Return published numbers with what is predicted here, and counted by the study."""
    columns, rows = data["operations"]
    of_columns, of_rows = studied["operations, whole over blocks, columns and rows"]
    gain = studied["gain predicted for MuonBP over Muon, percent"]
    whole = ", ".join(map(str, studied["sent over P in a whole step, ZeRO-2 and ZeRO-3"]))
    header = ["quantity", "published", "computed by `communication`", "counted by the study"]
    return table(
        header,
        [
            [
                "operations, whole over 8 blocks of columns, 16384 x 53248",
                "2.36 (MuonBP)",
                f"{columns:.5f}",
                f"{of_columns:.5f}",
            ],
            ["the same, 8 blocks of rows", "9.06 (MuonBP)", f"{rows:.5f}", f"{of_rows:.5f}"],
            [
                "throughput of MuonBP over Muon's, period 5, percent",
                "+8 (MuonBP, abstract)",
                "not predicted",
                f"+{gain:.2f}, from the published throughputs of Muon and BlockMuon",
            ],
            [
                "elements sent in a whole step over parameters, 8 devices, ZeRO-2 and ZeRO-3",
                "2 f, 3 f (DMuon)",
                "0 beyond AdamW",
                f"{whole}, as AdamW",
            ],
            [
                "bytes sent in the step of an optimizer with owners",
                "0 (torchtitan, pull request 3719)",
                f"{predict((64, 64), 'owner', 8).bytes:g}",
                "0",
            ],
            [
                "step on 32 GPUs (GB300): `gather`, `rows`, matrices to owners by exchange",
                "632, 356, 157 ms (Megatron-LM, issue 6676)",
                "not predicted: neither the matrices nor the links are listed",
                "not counted",
            ],
            [
                "collectives of that step",
                "76 or 276 before, 4 with owners (the same)",
                "1, a number of sums, 2/N per matrix",
                "not counted",
            ],
        ],
    )


def parts(data: dict[str, Any]) -> dict[str, str]:
    """Return the parts of the page."""
    numbers = sorted({r["numbers"] for r in data["counted"] if r["layout"] == "rows"})
    agree = sum(map(agrees, data["counted"]))
    counts = f"""\
{agree} of {len(data["counted"])} programs agree with the prediction in both numbers exactly:
JAX {data["versions"]["jax"]} on 2, 4 and 8 simulated devices,
torch {data["versions"]["torch"]} in 2 and 4 processes. Matrices of 64 x 16 in the table,
P = {PERIOD}, α = {FRACTION:g}, r = n/4. Collectives of a few numbers, {numbers[0]:g} to
{numbers[-1]:g} for each call of `rows`, are not in the table; each costs a latency."""
    return {
        "crossings": crossing_table(data),
        "sent": prediction_table(data, "bytes", SENT, 1e6),
        "work": prediction_table(data, "flops", WORK, 1e12),
        "counts": f"{counts}\n\n{counted_table(data)}",
        "published": published_table(data, load(PAPERS)["distributed"]["values"]),
    }


# -- figure ----------------------------------------------------------------------------------


def draw() -> Figure:
    """Draw bytes sent over those of the matrix against the ratio of the sides."""
    looks = {
        ("gather", "gram"): (plot.VERMILLION, "o", "gather"),
        ("block_periodic", "gram"): (plot.ORANGE, "s", "block_periodic"),
        ("all_to_all", "gram"): (plot.GREEN, "^", "all_to_all"),
        ("rows", "plain"): (plot.BLUE, "v", "rows, plain"),
        ("rows", "gram"): (plot.SKY, "D", "rows, gram"),
        ("dion", "gram"): (plot.PURPLE, "X", "dion"),
        ("dion2", "gram"): (plot.INK, "P", "dion2"),
    }
    fig = Figure(figsize=(5.6, 3.6), layout="constrained")  # at its size in a page of the site
    ax = fig.subplots()
    n, ends = 64, {}
    for (layout, form), (colour, marker, label) in looks.items():
        sent = [
            predict((ratio * n, n), layout, IN_FIGURE, form=form).bytes / (2 * ratio * n * n)
            for ratio in RATIOS
        ]
        line = "--" if layout == "dion" else "-"
        ax.loglog(RATIOS, sent, line, color=colour, marker=marker, markersize=6)
        ends[label] = sent[-1]
    gradient = 2 * (IN_FIGURE - 1) / IN_FIGURE
    ax.loglog(RATIOS, [gradient] * len(RATIOS), ":", color=plot.INK)
    ends["sum of gradients"] = gradient
    place, end = 0.0, RATIOS[-1]
    for label, y in sorted(ends.items(), key=lambda line: line[1]):
        place = max(y, place * 1.35)  # apart, each with a line from the end of its curve
        ax.plot([1.04 * end, 1.17 * end], [y, place], color=plot.INK, linewidth=0.5)
        ax.text(1.2 * end, place, label, va="center")
    ax.set_xlim(0.9, 42)
    ax.set_xticks(RATIOS, [str(r) for r in RATIOS])
    ax.minorticks_off()
    ax.set_xlabel("max(m, n) / min(m, n)")
    ax.set_ylabel("bytes sent / bytes of the matrix")
    return fig


def write_figure() -> None:
    """Write the figure as PNG and SVG; the same values give the same files."""
    with plot.style("page"), matplotlib.rc_context({"svg.hashsalt": "polarlib"}):
        fig = draw()
        for suffix, extra in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
            save = functools.partial(fig.savefig, format=suffix, **extra)
            write_whole(FIGURES / f"communication.{suffix}", save)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Count, write here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose parts between markers are rewritten.")
    ] = None,
) -> None:
    """Count and predict, or write the tables of the page and the figure."""
    if json_file is not None:
        made = f"{json.dumps(collect(), indent=1)}\n".encode()
        write_whole(json_file, lambda file: file.write(made))
    if markdown is not None:
        for name, text in parts(load(DATA)).items():
            replace_part(markdown, name, text)
        write_figure()


if __name__ == "__main__":
    typer.run(main)
