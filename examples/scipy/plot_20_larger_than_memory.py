"""
A matrix larger than memory
===========================

``polar_tall`` decomposes a Dask array of 400,000 × 32 numbers (102 MB), whose blocks are made on
the fly, with 5 MB of memory. With 25,000 rows it uses 4 MB.
"""

import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import plot

try:
    import dask
    import dask.array as da
except ImportError:
    raise SystemExit("this example needs Dask: python -m pip install 'polarlib[dask]'") from None

# %%
# A block is computed from its number whenever it is needed, and is the same each time. Blocks of a
# file (``da.from_zarr``) work in the same way.
ROWS, N = 5_000, 32


def block(block_info=None):
    """Return the rows of a block."""
    number = block_info[None]["chunk-location"][0]
    return np.random.default_rng(number).standard_normal((ROWS, N))


def tall(m):
    """Return an m × 32 array in blocks of 5,000 rows."""
    return da.map_blocks(block, chunks=((ROWS,) * (m // ROWS), (N,)), dtype=float)


def peak(function):
    """Return the result of a function, and the largest memory in use meanwhile, in MB."""
    tracemalloc.start()
    result = function()
    used = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return result, used


# %%
# One block after the other, so that the memory is that of one worker. The first call imports
# modules, which would be counted too.
sizes = np.array([25_000, 100_000, 400_000])
with dask.config.set(scheduler="synchronous"):
    polarlib.polar_tall(tall(sizes[0]))
    blocks = [peak(lambda m=m: polarlib.polar_tall(tall(m))) for m in sizes]
    in_memory = [peak(lambda m=m: polarlib.polar(tall(m).compute()))[1] for m in sizes[:2]]
results, blockwise = zip(*blocks, strict=True)

with plot.style("column"):
    fig, ax = plt.subplots()
    size = sizes * N * 8 / 1e6
    ax.loglog(size, size, ":", color=plot.INK, label="the matrix")
    ax.loglog(size[:2], in_memory, "--s", color=plot.ORANGE, label="polar, in memory")
    ax.loglog(size, blockwise, "-o", color=plot.BLUE, label="polar_tall, in blocks")
    ax.set(xlabel="size of the matrix (MB)", ylabel="largest memory in use (MB)")
    ax.set_xticks(size, [f"{x:.0f}" for x in size])
    ax.minorticks_off()
    ax.legend()
    plt.show()

# %%
# U is a lazy array with the blocks of the input; H is a NumPy array.
u = results[-1].unitary[:5].compute()
assert np.allclose(u @ results[-1].hermitian, block({None: {"chunk-location": (0, 0)}})[:5])
assert results[-1].orthogonality < 1e-14
print("in blocks:", ", ".join(f"{used:.1f} MB" for used in blockwise))
assert 4 < max(blockwise) < 5.5
assert max(blockwise) < 1.3 * min(blockwise)
