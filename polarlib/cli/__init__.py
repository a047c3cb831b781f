"""The command line, the only part of polarlib that prints.

Every command reads with :mod:`polarlib.files`, computes with the library, and prints a table, or
with ``--json`` one JSON document. Exit codes: 0 done, 1 failed to converge, 2 bad input, 130
interrupted. An error is one line on stderr, with control characters escaped; with
``POLARLIB_TRACEBACK=1`` in the environment it is a traceback.
"""
# ruff: noqa: E402 - the extra is checked before its packages are imported

from polarlib._extras import require

require("polarlib's command line", "cli", "typer", "rich")
require("polarlib's command line", "cli", "threadpoolctl")

from polarlib.cli import compare, design, info, listing, polar  # commands register themselves
from polarlib.cli.console import app, main

__all__ = ["app", "compare", "design", "info", "listing", "main", "polar"]
