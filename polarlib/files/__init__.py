"""Matrices from files, factors to files, and the real matrices that come with the library.

::

    a = files.read("a.npy")
    w = files.read("model.safetensors:layers.0.weight")
    u, h = polarlib.polar(a)
    files.write_npy("u.npy", u)
    g = files.shipped()["transformer_mlp_in_late"]

Nothing is unpickled, and a file is written whole or not at all. What cannot be read raises an
OSError or a ValueError of one line, which names the file and the remedy.
"""

from polarlib.files.matrices import (
    SUFFIXES,
    names,
    read,
    shipped,
    split,
    stories,
    write_npy,
    write_npys,
)

__all__ = ["SUFFIXES", "names", "read", "shipped", "split", "stories", "write_npy", "write_npys"]
