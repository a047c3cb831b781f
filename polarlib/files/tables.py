"""Results as tables of HTML, which notebooks show in place of a repr.

A table has a caption and headings with a scope, and no script. It has no colours, so that those of
the page apply, light or dark. All text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polarlib.arrays.library import dtype_name

# Sequences of at most this length are written out; of longer ones their length.
WRITTEN_OUT = 6
LEFT = " style='text-align:left'"


def html_table(caption: str, rows: Mapping[str, Any], head: Sequence[str] = ()) -> str:
    r"""Return a table of HTML with one row per entry, of one value or of a list of values.

    Parameters
    ----------
    caption : str
        Title of the table.
    rows : mapping
        Headings of the rows, and their values: one, or a list with one value per column. Values are
        written by :func:`cell`.
    head : sequence of str, optional
        Headings of the columns, including the column of the row headings.

    Returns
    -------
    str

    Examples
    --------
    >>> print(html_table("Run", {"steps": 5}).replace("><", ">\n<"))
    <table>
    <caption>Run</caption>
    <tbody>
    <tr>
    <th scope='row' style='text-align:left'>steps</th>
    <td>5</td>
    </tr>
    </tbody>
    </table>
    """
    top = ""
    if head:
        cells = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in head)
        top = f"<thead><tr>{cells}</tr></thead>"
    lines = []
    for name, value in rows.items():
        values = value if isinstance(value, list) else [value]
        cells = "".join(f"<td>{html.escape(cell(v))}</td>" for v in values)
        lines.append(f"<tr><th scope='row'{LEFT}>{html.escape(name)}</th>{cells}</tr>")
    body = f"<tbody>{''.join(lines)}</tbody>"
    return f"<table><caption>{html.escape(caption)}</caption>{top}{body}</table>"


def cell(value: Any) -> str:
    """Write a value for a table: arrays by dtype and shape, numbers to six digits.

    Entries are read only from arrays without axes in the memory of the host, where reading neither
    fails nor waits for a device.

    Parameters
    ----------
    value : object
        None, a number, a string, an array of any library, traced or not, or a sequence of these.

    Returns
    -------
    str

    Examples
    --------
    >>> cell(np.eye(3)), cell(np.float32(0.1)), cell(None), cell((1, 0.5)), cell(True)
    ('float64, shape (3, 3)', '0.1', '-', '(1, 0.5)', 'yes')
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, tuple | list):
        if len(value) > WRITTEN_OUT:
            return f"{len(value)} values"
        return f"({', '.join(map(cell, value))})"
    return str(value)


def _array(x: Any) -> str:
    try:
        shape, name = tuple(x.shape), dtype_name(x)
    except Exception:  # a placeholder for an array, as in JAX's flattening of trees
        return type(x).__name__
    if shape == ():
        # Tracers and tensors on a device raise here, in each library another type of error.
        try:
            return cell(np.asarray(x.detach() if hasattr(x, "detach") else x).item())
        except Exception:
            pass
    return f"{name}, shape {shape}"
