"""What the counts of every library share: a process for each case, and the output."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import polarlib

from .cases import Case, cases

Row = dict[str, Any]
# Choices of methods by the table alone: what is timed belongs to the machine.
os.environ["POLARLIB_COSTS"] = "shipped"


def outcome(call: Callable[[], Any]) -> str:
    """What a call comes to: its method, or the error in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # results mean nothing here
        try:
            result = call()
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return getattr(result, "method", "")


def in_child(count: Callable[[Case], Row], case: Case) -> Row:
    """The row of a case, from a copy of this process: no case sees what another one has cached."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with open(writing, "w") as pipe:
                json.dump(count(case), pipe)
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{case.name}: its process ended with {status}")
    return json.loads(text)


def command(
    package: str,
    count: Callable[..., Row],
    extra: tuple[Case, ...] = (),
    *,
    isolated: bool = True,
) -> None:
    """Count every case of a library; print the rows, as JSON or one to a line.

    Parameters
    ----------
    package : str
        Name under which the library is installed.
    count : callable
        Takes a case, and whether to print what it counts; returns its row.
    extra : tuple of Case, optional
        Cases of this library alone.
    isolated : bool, optional
        Whether each case has a process of its own.
    """
    parser = argparse.ArgumentParser(description=f"Counts of every case, {package}.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", default="", help="cases whose name has this pattern")
    parser.add_argument("-v", "--verbose", action="store_true", help="what was counted, by name")
    options = parser.parse_args()
    found = {}
    for case in (*cases(), *extra):
        if re.search(options.only, case.name):
            one = functools.partial(count, verbose=options.verbose)
            row = in_child(one, case) if isolated else one(case)
            found[case.name] = row
            if not options.json:
                shown = ", ".join(f"{k} {v}" for k, v in row.items() if v)
                print(f"{case.name}: {shown}", flush=True)  # noqa: T201
    if options.json:
        # Where polarlib comes from, for a check that it is the checkout that was meant.
        head = {"version": metadata.version(package), "polarlib": polarlib.__file__}
        print(json.dumps(head | {"rows": found}))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)  # handles of libraries that are not there cannot be destroyed


def shown(*counters: Any) -> None:
    """Print what was counted, by name."""
    for counter in counters:
        for name, number in counter.most_common():
            print(f"    {number:5d}  {name}")  # noqa: T201
