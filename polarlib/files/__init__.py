"""Matrices from files, factors to files, and the real matrices that come with the library.

::

    a = files.read("a.npy")
    w = files.read("model.safetensors:layers.0.weight")
    u, h = polarlib.polar(a)
    files.write_npy("u.npy", u)
    g = files.sample_matrices()["transformer_mlp_in_late"]

Nothing is unpickled, and a file is written whole or not at all. What cannot be read raises an
OSError or a ValueError of one line, which names the file and the remedy.
"""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "SUFFIXES",
    "names",
    "read",
    "sample_matrices",
    "sample_metadata",
    "split",
    "write_npy",
    "write_npys",
]

# The readers are imported where one of them is first named: `import polarlib` needs but whole.py.
if TYPE_CHECKING:
    from polarlib.files.matrices import (
        SUFFIXES,
        names,
        read,
        sample_matrices,
        sample_metadata,
        split,
        write_npy,
        write_npys,
    )
else:

    def __getattr__(name: str) -> Any:
        if name in (*__all__, "shipped", "stories"):  # the last two are former names, until 0.3
            return getattr(importlib.import_module("polarlib.files.matrices"), name)
        raise AttributeError(f"module 'polarlib.files' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
