"""Inventories of other libraries' names, for links to them from a machine without a network."""

from __future__ import annotations

import tomllib
import zlib
from pathlib import Path
from typing import Any

HEAD = "# Sphinx inventory version 2\n# Project: {}\n# Version: {}\n"
PACKED = "# The remainder of this file is compressed using zlib.\n"


def inventory(library: str, entry: dict[str, Any]) -> bytes:
    """Return the inventory of one library in Sphinx's format, version 2."""
    lines = [
        f"{name} {group['role']} 1 {group['page'].replace('%s', name)} -\n"
        for group in entry["names"]
        for name in group["names"]
    ]
    head = HEAD.format(library, entry["version"]) + PACKED
    return head.encode() + zlib.compress("".join(lines).encode())


def mapping(source: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Write the inventories that a file lists, and return Sphinx's ``intersphinx_mapping``.

    Parameters
    ----------
    source : Path
        ``inventories.toml``.
    folder : Path
        Where the inventories are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for library, entry in tomllib.loads(source.read_text(encoding="utf-8")).items():
        path = folder / f"{library}.inv"
        path.write_bytes(inventory(library, entry))
        found[library] = (entry["address"], str(path))
    return found
