"""Values as plain data for JSON, and as tables of HTML."""

from __future__ import annotations

import enum
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polarlib.arrays.entry import is_host_array


def plain(value: Any) -> Any:
    """Turn arrays, enums and paths into what JSON can hold; NaN and infinity into None.

    Examples
    --------
    >>> plain(np.array([1.0, np.inf]))
    [1.0, None]
    """
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if is_host_array(value):
        return plain(value.tolist())
    if hasattr(value, "shape"):  # of another library
        known = known_numbers(value)
        return str(value) if known is None else plain(known)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def known_numbers(value: Any) -> np.ndarray | None:
    """The numbers of an array; None where it is traced, or holds no numbers."""
    try:
        known = np.asarray(value)
    except TypeError:  # JAX's tracers
        return None
    return known if known.dtype.kind in "biuf" else None


def html_table(caption: str, figures: Mapping[str, Any], head: Sequence[str] = ()) -> str:
    """Return figures as a table of HTML: a row each, of one value or of a list of them.

    Examples
    --------
    >>> html_table("Run", {"steps": 5})
    "<table><caption>Run</caption><tr><th style='text-align:left'>steps</th><td>5</td></tr></table>"
    """
    rows = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"] if head else []
    for name, value in figures.items():
        values = value if isinstance(value, list) else [value]
        cells = "".join(f"<td>{html.escape(str(v))}</td>" for v in values)
        rows.append(f"<tr><th style='text-align:left'>{html.escape(name)}</th>{cells}</tr>")
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(rows)}</table>"
