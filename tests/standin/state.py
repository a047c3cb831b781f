"""What the mock counts: synchronizations and calls."""

import contextlib
from typing import NamedTuple

import numpy as np


class HostSynchronization(RuntimeError):
    """The host waited for the device inside `no_sync`."""


class Call(NamedTuple):
    """One call of a CuPy function.

    Attributes
    ----------
    name : str
        The name without ``cupy.``, such as ``"linalg.svd"``; that of the elementwise function
        for operators and that of the kernel for kernels.
    inputs, outputs : tuple
        Name of the data type and shape of each array that came in and out.
    """

    name: str
    inputs: tuple
    outputs: tuple


class State:
    """All that changes; there is one instance."""

    def __init__(self):
        self.forbidden = False
        self.device = 0
        self.streams = []
        self.captured = set()
        self.reset()

    def reset(self):
        self.syncs = 0
        self.calls = []
        self.kernels = set()
        self.raw_kernels = set()
        self.errors = dict.fromkeys(("divide", "over", "under", "invalid", "linalg"))
        self.random = np.random.default_rng(0)


state = State()


def syncs():
    """Return how often the host waited for the device since `reset`."""
    return state.syncs


def calls(name=None):
    """Return the calls since `reset`, or those of one name such as ``"linalg.svd"``."""
    return [call for call in state.calls if name is None or call.name == name]


def kernels():
    """Return sources and data types of the elementwise kernels that ran since `reset`.

    Each is a tuple of inputs, outputs, operation, name, and the types of all parameters.
    """
    return sorted(state.kernels)


def raw_kernels():
    """Return source and name of each raw kernel that ran since `reset`."""
    return sorted(state.raw_kernels)


def reset():
    """Forget all counts and calls, and seed the random numbers again."""
    state.reset()


@contextlib.contextmanager
def no_sync():
    """Raise `HostSynchronization` where the host would wait for the device."""
    before, state.forbidden = state.forbidden, True
    try:
        yield
    finally:
        state.forbidden = before


def synchronize(reason):
    """Count that the host waits for the device."""
    state.syncs += 1
    log(f"synchronize: {reason}")
    if state.forbidden:
        raise HostSynchronization(f"{reason} waits for the device")


def arrays_in(value):
    """Yield the mock's arrays in an argument or a result, nested or not."""
    if hasattr(type(value), "_host"):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from arrays_in(item)
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()))


def has_arrays(value):
    """Tell whether there is one of the mock's arrays in an argument."""
    return next(arrays_in(value), None) is not None


def log(name, inputs=(), outputs=()):
    """Note a call; raise for arrays of another device than the current one, unless it is a view."""
    described = [
        tuple((array.dtype.name, array.shape) for array in arrays_in(values))
        for values in (inputs, outputs)
    ]
    given, results = list(arrays_in(inputs)), list(arrays_in(outputs))
    is_view = results and all(
        not any(y is x for x in given) and any(np.may_share_memory(x._host, y._host) for x in given)
        for y in results
    )
    for array in (*given, *results):
        if array.device.id != state.device and not is_view:
            raise ValueError(
                "Array device must be same as the current device: array device = "
                f"{array.device.id} while current = {state.device}"
            )
    state.calls.append(Call(name, *described))
