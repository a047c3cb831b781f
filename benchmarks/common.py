"""What the benchmarks share: parts of pages that they rewrite, and files of figures."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from polarlib.files.whole import write_whole


def replace_part(page: Path, name: str, body: str) -> None:
    """Put a text between ``<!-- begin name -->`` and ``<!-- end name -->`` of a page.

    Raises
    ------
    ValueError
        Unless the page has each of the two once.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} needs one {begin} and one {end}")
    made = f"{text.split(begin)[0]}{begin}\n{body}\n{end}{text.split(end)[1]}".encode()
    write_whole(page, lambda file: file.write(made))


def where() -> str:
    """The machine and the versions."""
    names = ("numpy", "scipy", "torch", "jax")
    versions = [f"{n} {metadata.version(n)}" for n in names if importlib.util.find_spec(n)]
    return f"{platform.machine()}, {os.cpu_count()} processors, {', '.join(versions)}"


def load(path: Path, *parts: str) -> dict[str, Any]:
    """The figures so far, or empty parts beside the machine."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"machine": where(), **{part: {} for part in parts}}


def store(path: Path, figures: dict[str, Any]) -> None:
    """Write them, whole or not at all."""
    text = (json.dumps(figures, indent=1) + "\n").encode()
    path.parent.mkdir(exist_ok=True)
    write_whole(path, lambda f: f.write(text))
