"""The memory of the mock's device: what is in use, and whose an address is.

It is the host's memory, but of the arrays that count as being on the device only: an address that
the emulated libraries are given must lie there, or must not.
"""

import weakref

import numpy as np

from .state import state

_arrays = weakref.WeakValueDictionary()  # by id, since the mock's arrays cannot be hashed
_blocks = {}
_hooks = []


class Usage:
    """Bytes in use, the most there were, and how often memory was taken."""

    def __init__(self):
        self.used = self.peak = self.allocations = 0

    def reset(self):
        """Begin to count again; what is in use stays in use."""
        self.peak, self.allocations = self.used, 0


usage = Usage()


def _owner(host):
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


def _free(key, size):
    if _blocks.pop(key, None) is not None:
        usage.used -= size
        for hook in _hooks:
            hook.free_postprocess(device_id=0, mem_size=size, mem_ptr=0, pmem_id=0)


def track(array):
    """Count an array of the mock, and the memory that it lies in."""
    _arrays[id(array)] = array
    owner = _owner(array._host)
    key = id(owner)
    if key in _blocks:
        return
    size = owner.nbytes
    _blocks[key] = state.device
    weakref.finalize(owner, _free, key, size).atexit = False
    usage.used += size
    usage.peak = max(usage.peak, usage.used)
    usage.allocations += 1
    for hook in _hooks:
        hook.malloc_postprocess(device_id=0, size=size, mem_size=size, mem_ptr=0, pmem_id=0)


def device_of(host):
    """Return the number of the device in whose memory an array lies."""
    return _blocks[id(_owner(host))]


def arrays_at(address, size):
    """Return the arrays on the current device in whose memory these bytes lie."""
    found = []
    for array in list(_arrays.values()):
        if array.device.id != state.device:
            continue
        low, high = np.lib.array_utils.byte_bounds(_owner(array._host))
        if low <= address and address + size <= high:
            found.append(array)
    return found


class MemoryHook:
    """Told of every allocation inside a ``with`` statement, as CuPy's memory pool tells it."""

    name = "MemoryHook"

    def __enter__(self):
        _hooks.append(self)
        return self

    def __exit__(self, *exception):
        _hooks.remove(self)

    def malloc_postprocess(self, **kwargs):
        """Memory was taken."""

    def free_postprocess(self, **kwargs):
        """Memory was given back."""
