"""Matrices from files, factors to files, and the real matrices that come with the library.

::

    a = files.read("a.npy")
    w = files.read("model.safetensors:layers.0.weight")
    u, h = polarlib.polar(a)
    files.write("u.npy", u)
    g = files.sample_matrices()["transformer_mlp_in_late"]

Nothing is unpickled, and a file is written whole or not at all. A file that cannot be read raises
an OSError or a ValueError of one line with the file's name and the remedy.
"""

from typing import TYPE_CHECKING

from polarlib._lazy import attach

__all__ = [
    "SUFFIXES",
    "names",
    "read",
    "sample_matrices",
    "sample_metadata",
    "split",
    "write",
    "write_all",
    "write_npy",
    "write_npys",
]

if TYPE_CHECKING:
    from polarlib.files.matrices import (
        SUFFIXES,
        names,
        read,
        split,
        write,
        write_all,
        write_npy,
        write_npys,
    )
    from polarlib.files.samples import sample_matrices, sample_metadata
else:  # modules are imported when one of their names is first used
    _SAMPLES = ("sample_matrices", "sample_metadata", "shipped", "stories")  # the last two: to 0.3
    _HOMES = {
        "matrices": tuple(name for name in __all__ if name not in _SAMPLES),
        "samples": _SAMPLES,
    }
    __getattr__, __dir__ = attach(__name__, _HOMES, public=__all__)
