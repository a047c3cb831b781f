"""A section of a paper: a schedule designed, certified and measured on a gradient.

    python examples/paper_section.py [FOLDER]

Writes section.pdf and section.png, two panels at the width of a column, and section.tex, tables for
the package booktabs.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

import polarlib
from polarlib import design, files, plot

LOWER, STEPS, MATRIX = 3e-3, 5, "transformer_mlp_in_late"


def main(folder: Path) -> None:
    """Design, certify, measure; write the figure and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    designed = design.for_precision("bfloat16", LOWER, steps=STEPS)
    sets = {
        "designed": designed,
        "Polar Express": polarlib.schedule("polar_express"),
        "Muon": polarlib.schedule("jordan"),
    }
    gradient = files.sample_matrices()[MATRIX]
    traces = {
        (name, precision): polarlib.measure(gradient, s, precision=precision)
        for name, s in sets.items()
        for precision in ("float32", "bfloat16")
    }

    with plot.style("column"):
        fig = Figure(figsize=(3.3, 4.4))
        top, bottom = fig.subplots(2)
        plot.error(sets.values(), top, lower=LOWER, title="(a) worst case", legend=False)
        half = [traces[name, "bfloat16"] for name in sets]
        title = f"(b) a gradient of {gradient.shape[0]} × {gradient.shape[1]}, bfloat16"
        plot.compare(half, bottom, quantity="distance", labels=list(sets), title=title)
        plot.save(top, folder / "section.pdf")
        plot.save(top, folder / "section.png")

    rows = []
    for name, s in sets.items():
        bounds = [s.certify(LOWER, format=f).upper for f in (None, "bfloat16")]
        ends = [traces[name, p].distance[-1] for p in ("float32", "bfloat16")]
        numbers = [f"{value:.3f}" for value in (*bounds, *ends)]
        rows.append(" & ".join([name, str(s.matmuls), *numbers]) + r" \\")
    head = r"schedule & products & bound & in bfloat16 & float32 & bfloat16 \\"
    lines = [r"\begin{tabular}{lrrrrr}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    table = "\n".join([*lines, r"\end{tabular}", "", designed.to_code("latex")])
    (folder / "section.tex").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "paper-section"))
