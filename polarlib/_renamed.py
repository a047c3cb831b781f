"""Former names of modules, functions and arguments, until 0.3."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn the caller of the function that calls this one."""
    text = f"{old} is now {new}; the former name ends with polarlib 0.3"
    warnings.warn(text, DeprecationWarning, stacklevel)


def renamed(old: str, *homes: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds its names in other modules, with a warning."""

    def find(name: str) -> Any:
        if not name.startswith("__"):
            for new in homes:
                module = importlib.import_module(new)
                if hasattr(module, name):
                    warn_renamed(f"{old}.{name}", f"{new}.{name}")
                    return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return find


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of functions that take an argument by its former name too."""

    def decorated(f: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(f)
        def call(*args: P.args, **named: P.kwargs) -> R:
            if old in named:
                warn_renamed(f"{f.__name__}({old}=)", f"{new}=")
                named[new] = named.pop(old)
            return f(*args, **named)

        return call

    return decorated
