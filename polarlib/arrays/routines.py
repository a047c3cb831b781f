"""BLAS and LAPACK routines by their addresses, for NumPy matrices in place.

The routines have leading dimensions, so that blocks of a matrix are processed in place, while
Python's wrappers copy them. The wheels of NumPy and SciPy each contain an OpenBLAS with a pool of
threads. If both pools are active, each waits for processors on which threads of the other spin,
many times as long as a product takes. Since programs use NumPy around this package, the routines of
the library that NumPy has loaded are used, if its names are known. Otherwise (MKL, Accelerate, one
shared BLAS) the pointers of ``scipy.linalg.cython_blas`` and ``cython_lapack`` are used.

Matrices are two-dimensional and column-major, of one of the four types of BLAS. Blocks of their
columns and rows are views without copies. All results are written in place.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any

LETTERS = {"f": "s", "d": "d", "F": "c", "D": "z"}
# Routines for Hermitian matrices have other names in real types.
_REAL = {"herk": "syrk", "hemm": "symm", "hemv": "symv", "hetrf": "sytrf", "ungqr": "orgqr"}
# Names of the routines of the OpenBLAS in NumPy's wheels, whose integers have 64 bits.
_OPENBLAS = "scipy_{}_64_", "{}_64_"
# Number of multiplications in the square of a matrix, times bytes per entry, from which OpenBLAS
# starts threads, and up to which one thread is faster: docs/decisions/0016-one-pool-of-threads.md.
ALONE = 1 << 19, 3 << 28
# Number of distinct integers and real numbers that are cached for calls.
INTEGERS, NUMBERS = 1024, 256
# Number of sizes for which the length of a work array is cached.
LENGTHS = 256


class _Source(NamedTuple):
    """A library with the routines.

    Attributes
    ----------
    name : {"numpy", "scipy"}
        Origin of the library.
    address : callable
        Function of the name of a routine that returns its address; LookupError if there is none.
    integer : type
        ctypes' type of its integers.
    threads : tuple of two functions, or None
        Functions that return and set the number of threads of NumPy's library.
    """

    name: str
    address: Callable[[str], int]
    integer: Any
    threads: tuple[Callable[[], int], Callable[[int], None]] | None = None


def _numpys() -> _Source:
    """Return the OpenBLAS with which NumPy's module of linear algebra is linked."""
    # Symbols are looked up through the module's dependencies, without the path of a file.
    library = ctypes.CDLL(np.linalg._umath_linalg.__file__)
    pattern = next(p for p in _OPENBLAS if hasattr(library, p.format("dgemm")))

    def address(name: str) -> int:
        try:
            return _address_of(getattr(library, pattern.format(name)))
        except AttributeError:
            raise LookupError(name) from None

    number = f"{pattern.partition('{}')[0]}openblas_{{}}_num_threads64_".format
    get, put = getattr(library, number("get")), getattr(library, number("set"))
    put.restype = None
    return _Source("numpy", address, ctypes.c_int64, (get, put))


def _scipys() -> _Source:
    """Return SciPy's capsules with pointers, whose names are the signatures in C."""
    import scipy.linalg.cython_blas
    import scipy.linalg.cython_lapack

    published: Any = scipy.linalg.cython_blas, scipy.linalg.cython_lapack
    tables = [module.__pyx_capi__ for module in published]
    # Functions with their own types, since those of ctypes.pythonapi are shared.
    name_of = _python("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)
    pointer_of = _python(
        "PyCapsule_GetPointer", *(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    )

    def address(name: str) -> int:
        for table in tables:
            if name in table:
                return int(pointer_of(table[name], name_of(table[name])))
        raise LookupError(name)

    signature = name_of(tables[0]["dgemm"])
    if not signature.startswith(b"void (char *, char *, int *, int *, int *, "):
        raise LookupError(signature)
    return _Source("scipy", address, ctypes.c_int)


def _python(name: str, *types: Any) -> Callable[..., Any]:
    return ctypes.PYFUNCTYPE(*types)((name, ctypes.pythonapi))


def _address_of(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def source() -> _Source | None:
    """Return the source of routines: NumPy's library, SciPy's pointers, or None."""
    for find in (_numpys, _scipys):
        try:
            library = find()
            for name in ("dgemm", "dgesdd", "dgeqrt", "ztrtri"):
                library.address(name)
        except (AttributeError, ImportError, LookupError, OSError, StopIteration, TypeError):
            continue
        return library
    return None


# -- threads --------------------------------------------------------------------------------------


class _OneThread(contextlib.AbstractContextManager[None]):
    """Context in which NumPy's OpenBLAS computes with one thread, if routines come from it.

    The context is for small matrices. If threads of another pool spin after a call of SciPy, or if
    other programs use the processors, two threads take several times as long as one. The number of
    threads is a property of the process. While a thread of Python is in the context, all threads
    compute with one, and the last thread to leave restores the previous number.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside: list[int] = []  # identifiers of threads
        self.previous = 1

    def __enter__(self) -> None:
        get, put = _number_of_threads()
        with self.lock:
            if not self.inside:
                self.previous = get()
                if self.previous > 1:
                    put(1)
            self.inside.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside.remove(threading.get_ident())
            self._restore()

    def _restore(self) -> None:
        if not self.inside and self.previous > 1:
            _number_of_threads()[1](self.previous)

    def after_fork(self) -> None:
        """Reset the state in a child process, which has only one thread."""
        self.lock = threading.Lock()
        left = [thread for thread in self.inside if thread == threading.get_ident()]
        if left != self.inside:
            self.inside = left
            self._restore()


@functools.cache
def _number_of_threads() -> tuple[Callable[[], int], Callable[[int], None]]:
    """Return functions that get and set the number; constant 1 for other libraries."""
    library = source()
    return (library and library.threads) or (lambda: 1, lambda _: None)


one_thread = _OneThread()
_as_set = contextlib.nullcontext()


def threads_for(x: Array) -> contextlib.AbstractContextManager[None]:
    """Return a context with the best number of threads to decompose a NumPy matrix."""
    (m, n), (least, most) = x.shape[-2:], ALONE
    return one_thread if least <= m * n * min(m, n) * x.dtype.itemsize <= most else _as_set


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_thread.after_fork)


# -- calls ----------------------------------------------------------------------------------------

_flags = {letter: ctypes.byref(ctypes.c_char(letter.encode())) for letter in "ACLNRSTUV"}


@functools.cache
def _routine(name: str, arguments: int) -> Callable[..., Any]:
    """Return a routine by its name, which begins with the letter of its type."""
    library = source()
    if library is None:
        raise LookupError(name)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(library.address(name))


@functools.lru_cache(maxsize=INTEGERS)  # routines do not write to these arguments
def _integer(value: int) -> Any:
    library = source()
    return ctypes.byref((library.integer if library else ctypes.c_int)(value))


@functools.lru_cache(maxsize=NUMBERS)
def _number(value: float, kind: str) -> Any:
    part = ctypes.c_float if kind in "fF" else ctypes.c_double
    return ctypes.byref(part(value) if kind in "fd" else (part * 2)(value, 0.0))


def integers(n: int) -> Array:
    """Return zeros in the integer type of the routines, for pivots or return codes."""
    library = source()
    return np.zeros(n, np.dtype(library.integer if library else ctypes.c_int))


def call(name: str, kind: str, *arguments: Any) -> None:
    """Call a routine for a type (``dtype.char``).

    Letters, integers and numbers (floats, of that type) are passed as they are. Matrices are passed
    with their leading dimension. None stands for an array that the routine does not read.
    """
    letter = LETTERS[kind]
    name = letter + (_REAL.get(name, name) if letter in "sd" else name)
    passed: list[Any] = []
    for a in arguments:
        of = type(a)
        if of is np.ndarray:
            passed.append(a.ctypes.data)
            if a.ndim == 2:  # the leading dimension; strides of axes of length 1 are undefined
                m, n = a.shape
                passed.append(_integer(a.strides[1] // a.itemsize if n > 1 else max(1, m)))
        elif of is int:  # inlined from _converted, which would double the number of calls
            passed.append(_integer(a))
        elif of is float:
            passed.append(_number(a, kind))
        else:
            passed.append(_flags[a] if of is str else a)
    _routine(name, len(passed))(*passed)


def call_each(name: str, kind: str, *arguments: Any) -> None:
    """Call a routine for each matrix of a stack, with arguments that are converted once.

    A tuple of one array has one argument per matrix along its first axis. Matrices are
    column-major, and passed with their leading dimension. Other arguments are as in :func:`call`.
    """
    passed: list[Any] = []
    moving: list[tuple[int, int, int]] = []
    count = 0
    for a in arguments:
        if type(a) is tuple:
            x = a[0]
            count = len(x)
            moving.append((len(passed), x.ctypes.data, x.strides[0]))
            passed += [None, _integer(max(1, x.shape[1]))] if x.ndim == 3 else [None]
        else:
            passed.append(a.ctypes.data if type(a) is np.ndarray else _converted(a, kind))
    routine = _routine(LETTERS[kind] + name, len(passed))
    for i in range(count):
        for place, address, stride in moving:
            passed[place] = address + i * stride
        routine(*passed)


def _converted(a: Any, kind: str) -> Any:
    """Return a letter, an integer, a number or None as an argument of a routine."""
    of = type(a)
    if of is int:
        return _integer(a)
    if of is float:
        return _number(a, kind)
    return _flags[a] if of is str else a


# -- BLAS -----------------------------------------------------------------------------------------


def gemm(
    alpha: float, a: Array, b: Array, beta: float, c: Array, *, left: str = "N", right: str = "N"
) -> Array:
    """Compute ``C <- alpha op(A) op(B) + beta C``; op is given by "N", "T" or "C"."""
    k = a.shape[1] if left == "N" else a.shape[0]
    if c.size and k:
        call("gemm", c.dtype.char, left, right, *c.shape, k, float(alpha), a, b, float(beta), c)
    elif c.size:
        c *= c.dtype.type(beta)
    return c


def herk(alpha: float, x: Array, beta: float, c: Array, *, trans: str = "C") -> Array:
    """Compute the upper triangle of ``alpha X^H X + beta C``, or "N": ``alpha X X^H + beta C``."""
    n, k = c.shape[0], x.shape[1 if trans == "N" else 0]
    if n and k:
        kind = c.dtype.char
        real = kind.lower()  # alpha and beta are real in complex types too
        numbers = _number(alpha, real), _number(beta, real)
        call("herk", kind, "U", trans, n, k, numbers[0], x, numbers[1], c)
    return c


def hemm(x: Array, z: Array, beta: float, out: Array) -> Array:
    """Compute ``out <- X Z + beta out``, Z Hermitian, of which the upper triangle is read."""
    if out.size:
        call("hemm", out.dtype.char, "R", "U", *out.shape, 1.0, z, x, float(beta), out)
    return out


def hemv(z: Array, v: Array) -> Array:
    """Return ``Z v``, Z Hermitian, of which the upper triangle is read."""
    out = np.empty_like(v)
    call("hemv", v.dtype.char, "U", len(v), 1.0, z, v, 1, 0.0, out, 1)
    return out


def trsv(r: Array, v: Array, *, trans: str = "N") -> Array:
    """Return ``op(R)^-1 v``, R upper triangular."""
    out = v.copy()
    call("trsv", v.dtype.char, "U", trans, "N", len(v), r, out, 1)
    return out


def axpy(alpha: float, x: Array, y: Array) -> None:
    """Compute ``y <- alpha x + y`` for vectors."""
    call("axpy", x.dtype.char, len(x), float(alpha), x, 1, y, 1)


def trmm(
    alpha: float,
    a: Array,
    b: Array,
    *,
    side: str = "L",
    uplo: str = "U",
    trans: str = "N",
    unit: bool = False,
) -> Array:
    """Compute ``B <- alpha op(A) B`` or ``alpha B op(A)``, A triangular."""
    return _triangular("trmm", alpha, a, b, side, uplo, trans, unit)


def trsm(
    alpha: float,
    a: Array,
    b: Array,
    *,
    side: str = "L",
    uplo: str = "U",
    trans: str = "N",
    unit: bool = False,
) -> Array:
    """Compute ``B <- alpha op(A)^-1 B`` or ``alpha B op(A)^-1``, A triangular."""
    return _triangular("trsm", alpha, a, b, side, uplo, trans, unit)


def _triangular(
    name: str, alpha: float, a: Array, b: Array, side: str, uplo: str, trans: str, unit: bool
) -> Array:
    if b.size:
        diagonal = "U" if unit else "N"
        call(name, b.dtype.char, side, uplo, trans, diagonal, *b.shape, float(alpha), a, b)
    return b


# -- LAPACK ---------------------------------------------------------------------------------------


def potrf(z: Array, uplo: str = "U") -> bool:
    """Replace a triangle of Z by its Cholesky factor; return False if Z is not definite."""
    info = integers(1)
    if z.size:
        call("potrf", z.dtype.char, uplo, z.shape[0], z, info)
    return not info[0]


def trtri(r: Array) -> bool:
    """Replace an upper triangular matrix by its inverse; False if its diagonal has a zero."""
    info = integers(1)
    if r.size:
        call("trtri", r.dtype.char, "U", "N", r.shape[0], r, info)
    return not info[0]


def with_work(name: str, kind: str, *arguments: Any, last: tuple[Any, ...] = ()) -> int:
    """Call a routine whose last arguments are work and its length, `last`, and information.

    Returns
    -------
    int
        The return code: 0 on success.
    """
    length, info = best_length(name, kind, *arguments, last=last), integers(1)
    call(name, kind, *arguments, np.empty(length, kind), length, *last, info)
    return int(info[0])


def best_length(name: str, kind: str, *arguments: Any, last: tuple[Any, ...] = ()) -> int:
    """Return the length of the work array for which a routine is fastest."""
    shown: list[Any] = []
    for a in arguments:
        if type(a) is not np.ndarray:
            shown.append(a)
        else:
            shown += (None, max(1, len(a))) if a.ndim == 2 else (None,)
    return _length(name, kind, tuple(shown), len(last))


@functools.lru_cache(maxsize=LENGTHS)
def _length(name: str, kind: str, shown: tuple[Any, ...], last: int) -> int:
    """Return the best length of a work array, which depends on letters and sizes alone."""
    work = np.empty(1, kind)
    call(name, kind, *shown, work, -1, *[None] * last, integers(1))
    return max(1, int(work[0].real))


def hetrf(z: Array) -> Array:
    """Factorise a Hermitian matrix in place as ``U D U^H`` (Bunch, Kaufman); return the pivots."""
    pivots = integers(z.shape[0])
    with_work("hetrf", z.dtype.char, "U", z.shape[0], z, pivots)
    return pivots


def svd(x: Array) -> tuple[Array, Array, Array] | None:
    """Return the SVD ``u, s, vh`` by divide and conquer or QR iteration; None if both fail.

    The SVD is thin. `x` is finite, in any memory order, and not modified.
    """
    kind, real = x.dtype.char, x.real.dtype
    (m, n), k = x.shape, min(x.shape)
    for name in ("gesdd", "gesvd"):
        # Not of the transpose, as which row-major storage could be read: square roots of graded
        # matrices would then lose a digit.
        a = np.array(x, order="F")
        u, s = np.empty((m, k), kind, order="F"), np.empty(k, real)
        vh = np.empty((k, n), kind, order="F")
        # Real types have no such argument.
        complex_size = max(1, 5 * k * k + 7 * k, 2 * max(m, n) * k + 2 * k * k + k)
        more: tuple[Any, ...] = ()
        if x.dtype.kind == "c":
            more = (np.empty(complex_size if name == "gesdd" else 5 * max(1, k), real),)
        if name == "gesdd":
            jobs: tuple[Any, ...] = ("S",)
            more = (*more, integers(8 * k))
        else:
            jobs = ("S", "S")
        if with_work(name, kind, *jobs, m, n, a, s, u, vh, last=more) == 0:
            return u, s, vh
    return None


def qr(x: Array) -> tuple[Array, Array]:
    """Return the reduced Householder QR of a matrix, which is not modified."""
    kind, (m, n) = x.dtype.char, x.shape
    k = min(m, n)
    a, factors = np.array(x, order="F"), np.empty(k, kind)
    with_work("geqrf", kind, m, n, a, factors)
    r = np.triu(a[:k])
    q = a if m >= n else np.array(a[:, :k], order="F")
    with_work("ungqr", kind, m, k, k, q, factors)
    return q, r


def inverse(x: Array) -> Array | None:
    """Return the inverse by LU with partial pivoting; None if singular. `x` is not modified."""
    # The inverse of the transpose, in row-major storage, is the transpose of the inverse.
    turned = x.flags.c_contiguous
    a = np.array(x.T if turned else x, order="F")
    n, pivots, info = x.shape[0], integers(x.shape[0]), integers(1)
    if n:
        call("getrf", a.dtype.char, n, n, a, pivots, info)
        if info[0] > 0:
            return None
        with_work("getri", a.dtype.char, n, a, pivots)
    return a.T if turned else a
