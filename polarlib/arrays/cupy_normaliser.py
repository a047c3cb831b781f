"""Normalisations of CuPy arrays in two kernels each: sums, then the division.

The operators of a normalisation are about twenty launches on single numbers. In the first kernel
blocks sum parts of a matrix in double precision. The blocks of the second kernel add these sums,
compute the divisor, and divide. There are no atomics, so that results are reproducible.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from polarlib.arrays import cublas
from polarlib.arrays.library import dtype_name, import_library, is_complex
from polarlib.arrays.normaliser import Normaliser

Array = Any

# Types of the source below, by dtype; complex entries are stored as two numbers.
TYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float", "complex64": "float"}
# Threads of a block, and bytes per read of a thread.
THREADS = 256
BYTES = 16
# Entries per block before there are more blocks, and the largest number of blocks per matrix: every
# block of the second kernel reads one double of each. Not measured.
ENTRIES = 4096
MOST_PARTS = 1024
# Blocks of a grid.
MOST_BLOCKS = 2**31 - 1

# No header is included: NVRTC of CuPy's wheels has no headers of CUDA.
SOURCE = r"""
#define THREADS %(threads)d
#define BYTES %(bytes)d

struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };
typedef %(x)s X;
typedef %(g)s G;

template <typename T> struct alignas(BYTES) Pack {
    static constexpr int count = BYTES / sizeof(T);
    T at[count];
};

static __device__ float widened(float x) { return x; }

static __device__ float widened(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

static __device__ float widened(float16 x) {
#ifdef __CUDACC__
    float y;
    asm("cvt.f32.f16 %%0, %%1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    return from_half(x.bits);
#endif
}

static __device__ void narrow(float x, float& y) { y = x; }

static __device__ void narrow(float x, bfloat16& y) {
    unsigned bits = __float_as_uint(x);
    bits = x != x ? 0x7fc00000u : bits + 0x7fffu + ((bits >> 16) & 1u);
    y.bits = (unsigned short)(bits >> 16);
}

static __device__ void narrow(float x, float16& y) {
#ifdef __CUDACC__
    asm("cvt.rn.f16.f32 %%0, %%1;" : "=h"(y.bits) : "f"(x));
#else
    y.bits = to_half(x);
#endif
}

// Sum over the threads of a block, in an order that does not depend on anything.
static __device__ double total(double mine) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    const double result = sums[0];
    __syncthreads();
    return result;
}

static __device__ double total_of(const double* parts, long long count) {
    double sum = 0;
    for (long long i = threadIdx.x; i < count; i += THREADS) sum += parts[i];
    return total(sum);
}

// The part of a matrix that a block takes.
struct Part {
    long long first, step;
    __device__ Part(long long part, long long parts)
        : first(part * THREADS + threadIdx.x), step(parts * THREADS) {}
};

template <typename T>
static __device__ double squares(const T* x, long long size, Part part, long long wide) {
    double sum = 0;
    if (wide) {
        const Pack<T>* packs = reinterpret_cast<const Pack<T>*>(x);
        for (long long i = part.first; i < size / Pack<T>::count; i += part.step) {
            const Pack<T> pack = packs[i];
            for (int j = 0; j < Pack<T>::count; ++j) {
                const double entry = widened(pack.at[j]);
                sum += entry * entry;
            }
        }
    } else {
        for (long long i = part.first; i < size; i += part.step) {
            const double entry = widened(x[i]);
            sum += entry * entry;
        }
    }
    return total(sum);
}

// A divisor as a power of two, in two factors that are in range, and a number in [1, 2].
struct Divisor {
    float first, second, rest;

    __device__ Divisor(double s, long long power) {
        int exponent = 0;
        const bool finite = s - s == 0;
        const double fraction = finite ? frexp(s, &exponent) : s - s;
        exponent = finite ? exponent - 1 : 0;
        first = ldexpf(1.0f, -(exponent / 2));
        second = ldexpf(1.0f, exponent / 2 - exponent);
        rest = finite && power ? 1.0f : (float)(2 * fraction);
    }

    __device__ float divide(float x) const { return x * first * second / rest; }
};

template <typename T>
static __device__ void divide(
    const T* x, T* y, long long size, Part part, long long wide, Divisor divisor) {
    if (wide) {
        const Pack<T>* from = reinterpret_cast<const Pack<T>*>(x);
        Pack<T>* to = reinterpret_cast<Pack<T>*>(y);
        for (long long i = part.first; i < size / Pack<T>::count; i += part.step) {
            Pack<T> pack = from[i];
            for (int j = 0; j < Pack<T>::count; ++j)
                narrow(divisor.divide(widened(pack.at[j])), pack.at[j]);
            to[i] = pack;
        }
    } else {
        for (long long i = part.first; i < size; i += part.step)
            narrow(divisor.divide(widened(x[i])), y[i]);
    }
}

extern "C" __global__ void polarlib_norm_sums(
    const X* x, double* sums, long long size, long long parts, long long wide) {
    const long long matrix = blockIdx.x / parts, part = blockIdx.x %% parts;
    const double sum = squares(x + matrix * size, size, Part(part, parts), wide);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void polarlib_norm_divide(
    const X* x, X* y, const double* sums, long long size, long long parts, long long wide,
    double factor, long long power) {
    const long long matrix = blockIdx.x / parts, part = blockIdx.x %% parts;
    const double norm = sqrt(total_of(sums + matrix * parts, parts));
    const Divisor divisor(norm == 0 ? 1.0 : factor * norm, power);
    divide(x + matrix * size, y + matrix * size, size, Part(part, parts), wide, divisor);
}

// Of a square matrix, whose entries are one or two numbers: the sum of squares, and behind those of
// all blocks the trace, which is real.
extern "C" __global__ void polarlib_gram_sums(
    const G* g, double* sums, long long n, long long numbers, long long parts, long long wide) {
    const long long matrix = blockIdx.x / parts, size = n * n * numbers;
    const Part part(blockIdx.x %% parts, parts);
    g += matrix * size;
    const double sum = squares(g, size, part, wide);
    double mine = 0;
    for (long long i = part.first; i < n; i += part.step)
        mine += widened(g[i * (n + 1) * numbers]);
    const double trace = total(mine);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
        sums[gridDim.x + blockIdx.x] = trace;
    }
}

// The first blocks of a matrix divide Y, the others G.
extern "C" __global__ void polarlib_gram_divide(
    X* y, G* g, const double* sums, long long size, long long n, long long numbers,
    long long parts_y, long long parts_g, long long wide_y, long long wide_g, long long moments,
    double slack, double rounding, double safety) {
    const long long parts = parts_y + parts_g;
    const long long matrix = blockIdx.x / parts, part = blockIdx.x %% parts;
    const double* of_matrix = sums + matrix * parts_g;
    const double square = total_of(of_matrix, parts_g), norm = sqrt(square);
    const double mean = total_of(of_matrix + gridDim.x / parts * parts_g, parts_g) / n;
    const double variance = square * (1 + rounding) / n - mean * mean;
    const double spread = variance < 0 ? 0.0 : variance * (n - 1);  // NaN stays
    const double bound =
        sqrt(moments ? mean + sqrt(spread) + norm * slack : norm * (1 + slack));
    const double s = (bound == 0 ? 1.0 : bound) * safety;
    if (part < parts_y) {
        const Part mine(part, parts_y);
        divide(y + matrix * size, y + matrix * size, size, mine, wide_y, Divisor(s, 0));
    } else {
        const Part mine(part - parts_y, parts_g);
        const long long size_g = n * n * numbers;
        g += matrix * size_g;
        divide(g, g, size_g, mine, wide_g, Divisor(s * s, 0));
    }
}
"""


class Kernels(NamedTuple):
    """Kernels for matrices of one dtype and Gram matrices of one dtype."""

    norm_sums: Any
    norm_divide: Any
    gram_sums: Any
    gram_divide: Any


@functools.lru_cache(maxsize=64)
def _kernels(cupy: Any, x: str, g: str) -> Kernels:
    """Return the kernels for dtypes of matrices and Gram matrices, compiled at their first use."""
    code = source(x, g)
    return Kernels(*(cupy.RawKernel(code, f"polarlib_{name}") for name in Kernels._fields))


def source(x: str, g: str) -> str:
    """Return the source of the kernels for dtypes of matrices and of Gram matrices."""
    return SOURCE % {"threads": THREADS, "bytes": BYTES, "x": TYPES[x], "g": TYPES[g]}


def normaliser(x: Array) -> Normaliser | None:
    """Return the normaliser of a stack of matrices; None where operators must be used.

    Parameters
    ----------
    x : cupy.ndarray, shape (..., m, n)
        Supported if its numbers have 16 or 32 bits, and it is dense, by rows or by columns.
    """
    if dtype_name(x) not in TYPES or not x.size or not _is_dense(x):
        return None
    if _parts(x) * math.prod(x.shape[:-2]) > MOST_BLOCKS // 2:  # twice that for Y and G
        return None
    # The source contains instructions of NVIDIA's devices.
    is_hip = getattr(import_library("cupy").cuda.runtime, "is_hip", False)
    return None if is_hip else Normaliser(by_norm, by_gram)


def by_norm(x: Array, factor: float, power: bool) -> Array:
    """Return ``X / s``, a new array with the memory order of `x`, s the norm or a power of two.

    Parameters
    ----------
    x : cupy.ndarray, shape (..., m, n)
        As in :func:`normaliser`.
    factor : float
        s = factor ||X||_F; 1 for a zero matrix, NaN for one that is not finite.
    power : bool
        Whether s is rounded down to a power of two, so that the division is exact.
    """
    cupy = import_library("cupy")
    kernels = _kernels(cupy, *(dtype_name(x),) * 2)
    y, (count, size) = cublas.empty(x.shape, x), _counts(x)
    parts, wide = _parts(x), _is_wide(x) and _is_wide(y)
    grid, sums = (count * parts,), cupy.empty(count * parts, dtype="float64")
    kernels.norm_sums(grid, (THREADS,), (x, sums, size, parts, int(wide)))
    last = (float(factor), int(power))
    kernels.norm_divide(grid, (THREADS,), (x, y, sums, size, parts, int(wide), *last))
    return y


def by_gram(
    y: Array, g: Array, bound: str, slack: float, sums: float, safety: float
) -> tuple[Array, Array]:
    """Return ``Y / s`` and ``G / s^2`` for a bound s of the norm of Y, in their storage.

    Parameters
    ----------
    y : cupy.ndarray, shape (..., m, n)
        As in :func:`normaliser`; overwritten.
    g : cupy.ndarray, shape (..., n, n)
        The rounded Gram matrix, overwritten. It may have 16 bits while `y` has 32.
    bound : {"moments", "schatten4"}
        The bound from the trace and the Frobenius norm of G.
    slack, sums : float
        Relative errors of the eigenvalues of G and of sums, as parts of its norm.
    safety : float
        Further divisor.
    """
    cupy = import_library("cupy")
    y, g = (t if _is_dense(t) else cupy.ascontiguousarray(t) for t in (y, g))
    kernels = _kernels(cupy, dtype_name(y), dtype_name(g))
    (count, size), n = _counts(y), g.shape[-1]
    parts_y, parts_g = _parts(y), _parts(g)
    wide_y, wide_g = int(_is_wide(y)), int(_is_wide(g))
    sums_of = cupy.empty(2 * count * parts_g, dtype="float64")
    kernels.gram_sums((count * parts_g,), (THREADS,), (g, sums_of, n, _numbers(g), parts_g, wide_g))
    numbers = (int(bound == "moments"), float(slack), float(sums), float(safety))
    layout = (size, n, _numbers(g), parts_y, parts_g, wide_y, wide_g)
    blocks = count * (parts_y + parts_g)
    kernels.gram_divide((blocks,), (THREADS,), (y, g, sums_of, *layout, *numbers))
    return y, g


def _is_dense(x: Array) -> bool:
    return bool(x.flags.c_contiguous or x.swapaxes(-1, -2).flags.c_contiguous)


def _counts(x: Array) -> tuple[int, int]:
    """Return the number of matrices, and of numbers per matrix."""
    return math.prod(x.shape[:-2]), math.prod(x.shape[-2:]) * _numbers(x)


def _numbers(x: Array) -> int:
    """Return the number of numbers per entry."""
    return 2 if is_complex(x) else 1


def _parts(x: Array) -> int:
    """Return the number of blocks per matrix."""
    return int(min(MOST_PARTS, -(-math.prod(x.shape[-2:]) // ENTRIES)))


def _is_wide(x: Array) -> bool:
    """Return whether every matrix begins and ends at a multiple of `BYTES`."""
    size = math.prod(x.shape[-2:]) * x.itemsize
    return bool(size % BYTES == 0 and x.data.ptr % BYTES == 0)
