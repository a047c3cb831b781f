"""Values that are computed when they are first read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from polarlib.arrays.settings import current_device, under_default_settings


@under_default_settings  # the caller's settings may have changed since the value was deferred
def _computed(compute: Callable[[], Any]) -> Any:
    return compute()


class Later:
    """A value that is computed once, when it is first read, with any number of threads.

    ``later()`` is the value. It is computed on the device that was current when the object was
    made, under the default settings of the array libraries.

    Parameters
    ----------
    compute : callable
        Function without arguments that computes the value. It is released after its only call.

    Examples
    --------
    >>> later = Later(lambda: print("computed") or 3)
    >>> later(), later()
    computed
    (3, 3)
    """

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute: Callable[[], Any] | None = compute
        self._device = current_device()
        self._value: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        """Return the value, after it is computed.

        Returns
        -------
        object
            The result of `compute`.
        """
        with self._lock:
            if self._compute is not None:
                # The matrices that it is computed from are released with it.
                with self._device:
                    self._value, self._compute = _computed(self._compute), None
        return self._value
