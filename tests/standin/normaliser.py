"""The kernels of polarlib/arrays/cupy_normaliser.py in NumPy, for where no compiler is installed.

Each does what the interface says, on the memory of its arrays, with its sums in another order.
"""

import numpy as np


def flat(x, count, size):
    """View of the numbers of a dense array, one row for each matrix."""
    x = x.real  # which begins where the complex numbers do
    step = x.itemsize
    return np.lib.stride_tricks.as_strided(x, (count, size), (size * step, step))


def first_of(sums, parts, values):
    """Store the sum of each matrix in the place of its first part."""
    sums[:] = 0
    sums[::parts] = values


def quotient(x, divisor):
    with np.errstate(all="ignore"):
        return (x.astype(np.float64) / divisor[:, None]).astype(np.float32).astype(x.dtype)


def known(s):
    with np.errstate(all="ignore"):
        return s + (s - s)  # NaN for infinity


def norm_sums(grid, x, sums, size, parts, wide):
    rows = flat(x, grid // parts, size).astype(np.float64)
    first_of(sums, parts, np.sum(rows * rows, axis=1))


def norm_divide(grid, x, y, sums, size, parts, wide, factor, power):
    norm = np.sqrt(sums.reshape(-1, parts).sum(axis=1))
    s = known(np.where(norm == 0, 1.0, factor * norm))
    if power:
        s = np.where(np.isfinite(s), np.ldexp(1.0, np.frexp(s)[1] - 1), s)
    flat(y, len(s), size)[...] = quotient(flat(x, len(s), size), s)


def gram_sums(grid, g, sums, n, numbers, parts, wide):
    rows = flat(g, grid // parts, n * n * numbers).astype(np.float64)
    first_of(sums[:grid], parts, np.sum(rows * rows, axis=1))
    first_of(sums[grid:], parts, rows[:, :: (n + 1) * numbers].sum(axis=1))


def gram_divide(
    grid, y, g, sums, size, n, numbers, parts_y, parts_g, wide_y, wide_g,
    moments, slack, rounding, safety,
):  # fmt: skip
    square, trace = sums.reshape(2, -1, parts_g).sum(axis=2)
    norm, mean = np.sqrt(square), trace / n
    with np.errstate(all="ignore"):
        variance = square * (1 + rounding) / n - mean * mean
        spread = np.where(variance < 0, 0.0, variance * (n - 1))
        inside = mean + np.sqrt(spread) + norm * slack if moments else norm * (1 + slack)
        bound = np.sqrt(inside)
        s = known(np.where(bound == 0, 1.0, bound) * safety)
        for x, entries, divisor in ((y, size, s), (g, n * n * numbers, s * s)):
            rows = flat(x, len(s), entries)
            rows[...] = quotient(rows, divisor)


KERNELS = {f"polarlib_{f.__name__}": f for f in (norm_sums, norm_divide, gram_sums, gram_divide)}
