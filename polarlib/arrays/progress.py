"""Progress of long computations: the one convention of all arguments ``callback=``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib.arrays.checks import function

Callback = Callable[["Progress", Any], Any]


class Progress(int):
    """Number of parts that are done, the first argument of every callback.

    A function with an argument `callback` calls it as ``callback(k, value)`` after part
    k = 1, 2, ..., where k is an integer with two attributes, and `value` is what the computation
    has at that point: an iterate, the best value so far. Its docstring names the parts and the
    value. The return value of the callback is ignored. An exception that it raises, or an
    interrupt, ends the computation and is passed on; files and arguments are then as before.

    Parameters
    ----------
    done : int
        Number of parts that are done.
    total, what : optional
        The attributes.

    Attributes
    ----------
    total : int or None
        Largest number of parts, where that is known beforehand. A search may need fewer.
    what : str
        What is counted, such as "local optimisations".

    Examples
    --------
    >>> k = Progress(3, 10, "sweeps")
    >>> f"{k} of {k.total} {k.what}", k + 1
    ('3 of 10 sweeps', 4)

    A bar of tqdm, or whatever shows a fraction, needs one line:
    ``callback=lambda k, value: bar.update(k - bar.n)``.
    """

    total: int | None
    what: str

    def __new__(cls, done: int, total: int | None = None, what: str = "") -> Progress:
        """Return the number `done` with the two attributes."""
        self = super().__new__(cls, done)
        self.total, self.what = total, what
        return self

    def __getnewargs__(self) -> Any:  # for copies and pickles
        return int(self), self.total, self.what


def reporting(callback: Any, what: str, total: int | None = None) -> Callable[..., Any]:
    """Return a function of (number, value, what) that calls a callback, or does nothing for None.

    `what` is optional there, where all parts are alike.

    Raises
    ------
    TypeError
        If the callback is neither None nor a function.
    """
    if callback is None:
        return lambda k, value, what="": None
    call = function("callback", callback)
    return lambda k, value, what=what: call(Progress(k, total, what), value)
