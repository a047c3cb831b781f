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
# Other libraries' own tests on polarlib

{summary}

Adapters in [tests/peers](../../tests/peers) replace functions of another library by functions that
call polarlib, and run that library's tests unchanged. Made by `python docs/make_peers.py` from
[data/peers.json](../data/peers.json).

```
nox -s peers                    # libraries whose installed packages contain their tests
nox -s peers -- PATH            # also those with a copy in PATH: PATH/roma, PATH/pytorch3d, ...
python tests/peers/frame.py PATH --only roma --json docs/data/peers.json
```

A run fails if a test fails, or if a replaced function or polarlib is never called. It also fails if
a reason is given for a test that does not exist. Tests are left out only for a reason that is
listed below. Each adapter has the mapping of functions and of conventions.
"""


def summary(data: dict[str, dict[str, Any]]) -> str:
    """Return the sentence on top."""
    passed = sum(row["passed"] for row in data.values())
    failed = sum(len(row["failed"]) for row in data.values())
    left = sum(entry["count"] for row in data.values() for entry in row["not_run"])
    return (
        f"{passed:,} tests of {len(data)} test suites pass with functions replaced by polarlib, "
        f"{failed} fail, and {left} were not run."
    )


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
        HEAD.format(summary=summary(data)),
        "| library | version | passed | failed | not run | replaced functions | by calls of |",
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
    lines += ["", "## Tests that were not run, and remarks", ""]
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
