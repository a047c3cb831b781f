"""Results of the studies of ``analysis/``: a data file, one page, and a table per README.

    python benchmarks/papers.py --run              # every study, full and quick, then the page
    python benchmarks/papers.py --run chi_q cans   # only these; the others are kept
    python benchmarks/papers.py                    # the page from docs/data/papers.json

Each study runs in its own process with one BLAS thread. docs/data/papers.json has values, seconds
and versions. Published values and tolerances are in each expected.json, and verdicts follow from
both files, so that the page cannot differ from them. The command writes docs/papers.md,
docs/figures/papers/ (the first plot of each study), and in analysis/NAME/README.md the table of
values and the times of the commands.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import replace_part, table, where, with_threads

from polarlib.files.whole import write_whole
from polarlib.report import claim_rows, not_reproduced, tolerance_text, value_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "analysis"))
import verdicts
from verdicts import VERDICTS

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "data" / "papers.json"
PAGE = ROOT / "docs" / "papers.md"
PICTURES = ROOT / "docs" / "figures" / "papers"
COMMAND = re.compile(r"(python analysis/(\w+)/run\.py( --quick)?) *(#.*)?")


def studies() -> list[str]:
    """Return the names of all studies."""
    return sorted(path.parent.name for path in (ROOT / "analysis").glob("*/run.py"))


# -- runs ------------------------------------------------------------------------------------


def measured(name: str) -> dict[str, Any]:
    """Run a study, quickly and in full; return its entry of the data file.

    Raises
    ------
    RuntimeError
        If a value failed, or a package is missing.
    """
    script = ROOT / "analysis" / name / "run.py"
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for options in (["--quick"], []):
            run = subprocess.run(
                [sys.executable, str(script), "--json", "--out", folder, *options],
                env=with_threads(1),
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if run.returncode:
                raise RuntimeError(f"{script} {' '.join(options)} exits {run.returncode}")
            results.append(json.loads(run.stdout))
        quick, full = results
        picture = full["plots"][0]
        PICTURES.mkdir(parents=True, exist_ok=True)
        for kind in ("png", "svg"):
            content = Path(folder, picture[kind]).read_bytes()
            put = PICTURES / f"{name}.{kind}"
            write_whole(put, lambda file, content=content: file.write(content))
    return {
        "seconds": full["seconds"],
        "quick seconds": quick["seconds"],
        "versions": full["versions"],
        "machine": where(),
        "values": {figure["name"]: figure["value"] for figure in full["figures"]},
        "caption": picture["caption"],
    }


# -- verdicts --------------------------------------------------------------------------------


def judged(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return a study's expected.json with the computed values and their verdicts.

    Raises
    ------
    ValueError
        If the file of values lacks a figure, or has others: the study has to run again.
    """
    told = verdicts.expected(ROOT / "analysis" / name / "expected.json")
    values = data["values"]
    if set(values) != {figure["name"] for figure in told["figures"]}:
        raise ValueError(f"{DATA} has other figures of {name} than its expected.json: --run {name}")
    figures = verdicts.judged(told["figures"], values)
    return told | {"figures": figures} | {k: v for k, v in data.items() if k != "values"}


# -- texts -----------------------------------------------------------------------------------


def cell(text: str) -> str:
    return text.replace("|", r"\|")


def figures_table(figures: Sequence[dict[str, Any]]) -> str:
    """The table of a README: every figure of a study."""
    rows = []
    for f in figures:
        wrong = f["wrong"]
        value = "no value" if wrong["value"] is None else value_text(wrong["value"])
        published = "–" if f["published"] is None else value_text(f["published"])
        rows.append(
            [
                cell(f["name"]),
                f"{published} ({f['source_kind']}: {cell(f['where'])})",
                value_text(f["value"]),
                f"{tolerance_text(f['tolerance'])}; {cell(wrong['method'])}: {value}",
                f["verdict"],
            ]
        )
    return table(
        ["value", "published", "computed", "tolerance; method that it excludes", "verdict"],
        rows,
    )


def claim_cells(study: dict[str, Any]) -> list[list[str]]:
    """Of each claim: the claim, our figures, the condition."""
    rows = []
    for claim in claim_rows(study):
        ours = []
        for value in claim["values"]:
            said = f" (published: {value['published']})" if value["published"] else ""
            ours.append(f"{cell(value['name'])}: {value['computed']}{said}, *{value['verdict']}*")
        rows.append([cell(claim["claimed"]), "<br>".join(ours), cell(claim["condition"])])
    return rows


def section(name: str, study: dict[str, Any]) -> str:
    """Return the section of a study."""
    parts = [
        f"## {study['title']}",
        study["source"],
        f"`python analysis/{name}/run.py`, {study['seconds']:.0f} s; "
        f"[analysis/{name}](../analysis/{name}/README.md) has every value, the settings, and how "
        "to read the plots.",
        table(["claim", "computed", "condition"], claim_cells(study)),
    ]
    others = not_reproduced(study)
    if others:
        reasons = [
            f"- {f['name']}: {value_text(f['published'])} ({f['where']}), "
            f"computed {value_text(f['value'])}. {f['recorded']['because']}"
            for f in others
        ]
        parts += ["Not reproduced:", "\n".join(reasons)]
    parts.append(f"![{study['title']}](figures/papers/{name}.png)")
    parts.append(study["caption"])
    return "\n\n".join(parts)


def page(data: dict[str, Any]) -> str:
    """Return the page."""
    whole = {name: judged(name, data[name]) for name in data}
    rows, totals = [], dict.fromkeys(VERDICTS, 0)
    for study in whole.values():
        words = [figure["verdict"] for figure in study["figures"]]
        for word in VERDICTS:
            totals[word] += words.count(word)
        counts = [str(words.count(word)) for word in VERDICTS[:-1]]
        anchor = re.sub(r"[^\w\- ]", "", study["title"].lower()).replace(" ", "-")
        rows.append([f"[{study['title']}](#{anchor})", *counts, f"{study['seconds']:.0f}"])
    rows.append(["all", *(str(totals[word]) for word in VERDICTS[:-1]), ""])
    machines = sorted({study["machine"] for study in whole.values()})
    head = f"""# Results of papers, computed again

{len(whole)} studies compute {sum(totals.values())} values: {totals["reproduced"]} reproduce a
printed number, {totals["consistent"]} are consistent with a claim, and
{totals["not reproduced"]} differ from the published number, with the reason given.

Made by `python benchmarks/papers.py` from `docs/data/papers.json` and the `expected.json` of each
study in [analysis/](../analysis/README.md). The column "computed" has the values of the command
below each title. Other numbers in the conditions are in the tables that the same command writes.

- *reproduced*: a number that a paper or its code prints, or that a formula of it gives, is met
  within a tolerance that excludes the closest wrong method.
- *consistent*: an order, a rate, a direction or a bound that a paper claims without a number, a
  value of a design note, or a value of this project, is met under a check that could have failed.
- *not reproduced*: the computed number differs from the published one. The reason is given.

{table(["study", *VERDICTS[:-1], "seconds"], rows)}

One thread of {"; ".join(machines)}.
"""
    return "\n\n".join([head.rstrip(), *(section(n, s) for n, s in whole.items())]) + "\n"


def readme(text: str, data: dict[str, Any]) -> str:
    """Return a README with the measured times of its commands."""

    def timed(match: re.Match[str]) -> str:
        command, name, quick, _ = match.groups()
        seconds = data[name]["quick seconds" if quick else "seconds"]
        return f"{command}{' ' * (4 if quick else 12)}# {max(seconds, 1):.0f} s"

    return COMMAND.sub(timed, text)


def write(data: dict[str, Any]) -> None:
    """Write the page, and the table and times of every README."""
    text = page(data).encode()
    write_whole(PAGE, lambda file: file.write(text))
    for name in data:
        path = ROOT / "analysis" / name / "README.md"
        replace_part(path, "figures", figures_table(judged(name, data[name])["figures"]))
        timed = readme(path.read_text(encoding="utf-8"), data).encode()
        write_whole(path, lambda file, timed=timed: file.write(timed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", nargs="*", metavar="STUDY", help="run all studies, or these")
    options = parser.parse_args()
    known = studies()
    if unknown := set(options.run or ()) - set(known):
        parser.error(f"no study {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    if options.run is not None:
        for name in options.run or known:
            data[name] = measured(name)
            sys.stderr.write(f"{name}: {data[name]['seconds']} s\n")
    data = {name: data[name] for name in known}
    text = (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
    write_whole(DATA, lambda file: file.write(text))
    write(data)


if __name__ == "__main__":
    main()
