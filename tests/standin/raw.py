"""Kernels in CUDA's C++, compiled for the host by g++: one after the other, barriers included.

Where there is no g++, kernels that are known by name run in NumPy.
"""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from . import normaliser
from .state import log, state

COMPILER = shutil.which("g++")
HEADER = Path(__file__).with_name("device.h").read_text(encoding="ascii")
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')
TYPES = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
NUMBERS = {"long long": (int, ctypes.c_longlong), "double": (float, ctypes.c_double)}


def parameters(code, name):
    """Return C types and names of the parameters of a kernel."""
    texts = dict(KERNEL.findall(code))
    if name not in texts:
        raise ValueError(f"there is no kernel {name} in the source")
    return [tuple(p.strip().rpartition(" ")[::2]) for p in texts[name].split(",")]


def dtype_of(code, kind):
    """Return the dtype of a pointer's entries, through the typedefs of the source."""
    kind = kind.removeprefix("const ").removesuffix("*")
    aliases = {new: old for old, new in re.findall(r"typedef (\w+) (\w+);", code)}
    return TYPES[aliases.get(kind, kind)]


@functools.cache
def compiled(code):
    """Compile a source with a function `launch_...` for each of its kernels."""
    launchers = [
        f'extern "C" int launch_{name}(unsigned grid, unsigned block, {declared})'
        f" {{ return run(grid, block, [&] {{ {name}({', '.join(given)}); }}); }}"
        for name, declared in KERNEL.findall(code)
        for given in [[label for _, label in parameters(code, name)]]
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        source.write_text("\n".join((HEADER, code, *launchers)), encoding="ascii")
        # Neither contracted nor reassociated: what is tested is the arithmetic as written.
        options = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
        options += ["-U_FORTIFY_SOURCE"]  # which takes a jump to another stack for an error
        subprocess.run([COMPILER, *options, source, "-o", library], check=True)
        return ctypes.PyDLL(str(library))  # which keeps the lock: blocks share static memory


class RawKernel:
    """A kernel whose threads run on the host."""

    def __init__(self, code, name, options=(), **kwargs):
        if options or kwargs:
            raise NotImplementedError("the mock's raw kernels have no options")
        self.code, self.name = code, name
        self.parameters = parameters(code, name)

    def __call__(self, grid, block, args, **kwargs):
        if kwargs:
            raise NotImplementedError(f"the mock's kernels have no {sorted(kwargs)}")
        if len(grid) != 1 or len(block) != 1 or not (0 < grid[0] < 2**31 and 0 < block[0] <= 1024):
            raise ValueError(f"a grid of {grid} blocks of {block} threads")
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} has {len(self.parameters)} parameters, not {len(args)}")
        converted = [self.converted(x, *p) for x, p in zip(args, self.parameters, strict=True)]
        state.raw_kernels.add((self.code, self.name))
        if COMPILER:
            launch = getattr(compiled(self.code), f"launch_{self.name}")
            if launch(*map(ctypes.c_uint, (grid[0], block[0])), *converted):
                raise RuntimeError(f"threads of {self.name} miss a barrier")
        else:
            hosts = [x._host if hasattr(x, "_host") else x for x in args]
            normaliser.KERNELS[self.name](grid[0], *hosts)
        arrays = [x for x in args if hasattr(x, "_host")]
        log(self.name, arrays, arrays)

    def converted(self, value, kind, label):
        """Return an argument as C takes it; the array or number must be of the declared type."""
        if kind in NUMBERS:
            expected, convert = NUMBERS[kind]
            if type(value) is not expected:
                raise TypeError(f"{label} is a {kind}, not {value!r}")
            return convert(value)
        # Complex entries are pairs of numbers.
        if not hasattr(value, "_host") or value.real.dtype != dtype_of(self.code, kind):
            raise TypeError(f"{label} is a {kind}, not {getattr(value, 'dtype', value)}")
        return ctypes.c_void_p(value.data.ptr)
