"""Write docs/evidence/peers.md from docs/data/peers.json, which tests/peers/frame.py makes.

    python docs/make_peers.py

tests/peers/test_frame.py checks that the page is up to date and that every adapter has a row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polarlib.files.whole import write_whole

PAGE = Path(__file__).parent / "evidence" / "peers.md"
DATA = Path(__file__).parent / "data" / "peers.json"

HEAD = """\
# Peers' own tests on polarlib

Other libraries compute the polar factor too, under names of their own, and test it. Adapters in
[tests/peers](../../tests/peers) replace their functions by ones that call polarlib, and run the
peers'
tests, as they are. Made by `python docs/make_peers.py` from [data](../data/peers.json); nothing
here is typed by hand.

```
nox -s peers                    # those whose installed packages hold their tests
nox -s peers -- PATH            # and those of which PATH has a copy: PATH/roma, PATH/pytorch3d, ...
python tests/peers/frame.py PATH --only roma --json docs/data/peers.json
```

A run fails if a test fails, if a function that was replaced is never called, if polarlib is never
called, or if a reason is given for leaving out a test that does not exist. Tests are left out only
for a reason, below. Each adapter says which function took which one's place, and how the peer's
conventions become ours.
"""


def code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def version_of(row: dict[str, Any]) -> str:
    """A commit of a repository, or the version of an installed package."""
    if row["commit"]:
        return f"[{row['commit'][:10]}]({row['repository']}/tree/{row['commit']})"
    return f"[{row['version']}]({row['repository']})"


def page(data: dict[str, dict[str, Any]]) -> str:
    """The text of the page."""
    lines = [
        HEAD,
        "| peer | version | passed | failed | not run | its functions, replaced | by calls of |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in data.items():
        left = sum(entry["count"] for entry in row["not_run"])
        cells = [
            name,
            version_of(row),
            str(row["passed"]),
            str(len(row["failed"])),
            str(left),
            code(sorted(row["replaced"])),
            code(sorted(row["polarlib"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What was not run, and what else to know", ""]
    for name, row in data.items():
        said = [f"{e['count']} of `{e['tests']}`: {e['reason']}" for e in row["not_run"]]
        said = [sentence(text) for text in said]
        said += [sentence(row["note"])] if row["note"] else []
        libraries = ", ".join(f"{key} {value}" for key, value in row["libraries"].items())
        chosen = f" with `{' '.join(row['options'])}`" if row["options"] else ""
        said.append(f"Tests: {code(row['tests'])}{chosen}. Python {row['python']}, {libraries}.")
        lines += [f"**{name}**", "", *(f"- {line}" for line in said), ""]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    text = page(json.loads(DATA.read_text("utf-8")))
    write_whole(PAGE, lambda file: file.write(text.encode("utf-8")))


if __name__ == "__main__":
    main()
