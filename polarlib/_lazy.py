"""Public names of a package whose modules are imported at first use (PEP 562).

The package `lazy_loader` does the same, but imports the module again at each access of a function,
which costs a warm call some microseconds; here the first access stores the value in the package.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_LOCK = threading.RLock()


def attach(
    package: str,
    homes: Mapping[str, Iterable[str]],
    modules: Iterable[str] = (),
    public: Iterable[str] = (),
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package.

    Parameters
    ----------
    package : str
        Name of the package.
    homes : mapping of str to iterable of str
        Names in the package, by the module that defines them (relative to the package).
    modules : iterable of str, optional
        Modules of the package that are attributes.
    public : iterable of str, optional
        Names that ``dir`` lists in addition to those that are loaded; by default all of `homes`.

    Notes
    -----
    One lock orders the first accesses of all threads. Python's own locks, one per module, do not
    suffice: two threads that enter a package and one of its modules at the same time can each find
    the other's module half-imported. Modules that are imported in this way must not access names of
    the package at their top level (``import polarlib.published as published`` does not), since a
    thread that imports such a module directly would wait for this lock (tests/test_package.py).

    Examples
    --------
    >>> find, _ = attach("polarlib", {"published": ["schedules"]})
    >>> len(find("schedules")()) > 10
    True
    """
    home = {name: f"{package}.{module}" for module, names in homes.items() for name in names}
    whole = {*modules}
    listed = {*public} or {*home}

    def find(name: str) -> Any:
        if name not in home and name not in whole:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with _LOCK:
            if name in home:
                value = getattr(importlib.import_module(home[name]), name)
            else:
                value = importlib.import_module(f"{package}.{name}")
        setattr(sys.modules[package], name, value)
        return value

    def listing() -> list[str]:
        former = home.keys() - listed  # names that are not listed, used or not
        return sorted((vars(sys.modules[package]).keys() - former) | listed)

    return find, listing
