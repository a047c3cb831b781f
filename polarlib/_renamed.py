"""Former names of modules, until 0.3."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["renamed"]


def renamed(old: str, *homes: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds its names in other modules, with a warning."""

    def find(name: str) -> Any:
        if not name.startswith("__"):
            for new in homes:
                module = importlib.import_module(new)
                if hasattr(module, name):
                    warnings.warn(
                        f"{old}.{name} is now {new}.{name}; the former name ends with polarlib 0.3",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                    return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return find
