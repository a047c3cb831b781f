"""Class Ops: the arithmetic of one array library.

Algorithms use the primitives of :class:`Ops` only. The base class is purely functional, and needs
only the array API standard (array-api-strict, Dask, any other). Subclasses have the fast code paths
and special cases of a library, which are in this package alone. Methods with an underscore are for
this package.

To add a library, write a file with a subclass that has its name (``library = "name"``, as in
array_api_compat) and import it in ``polarlib/arrays/__init__.py``.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar, cast

import array_api_compat
import numpy as np
from array_api_compat import array_namespace

from polarlib.arrays.arithmetic import Arithmetic
from polarlib.arrays.formats import Format
from polarlib.arrays.kernels import NumpyKernels
from polarlib.arrays.library import astype_like, import_library, is_complex
from polarlib.arrays.normaliser import Normaliser

Array = Any
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
# A function of arrays, or a rule for its derivatives.
Rule = Callable[..., tuple[Array, ...]]


class Diagonal(NamedTuple):
    """The equation ``H X + c X H + shift X = W`` in the basis of the eigenvectors of H.

    Attributes
    ----------
    sums : array, shape (..., n, n)
        ``s_i + c s_j + shift``, the divisors of components of W; s the eigenvalues.
    vectors : array, shape (..., n, n)
        Eigenvectors.
    shift : array, shape (..., 1, 1), or None
        None for zero.
    """

    sums: Any
    vectors: Any
    shift: Any = None


def finite_only(factorise: F) -> F:
    """Replace matrices that are not finite before a factorisation: LAPACK may not return for NaN.

    The replacement is the identity, if the matrix is square, and the results are NaN.
    """

    @functools.wraps(factorise)
    def of_finite(self: Ops, *arrays: Array, **options: Any) -> Any:
        if self.host and all(self._is_finite(x) for x in arrays):
            return factorise(self, *arrays, **options)
        run = functools.partial(self._where_it_can, factorise)
        xp = self.xp
        finite = functools.reduce(
            operator.and_, (xp.all(xp.isfinite(x), axis=(-2, -1), keepdims=True) for x in arrays)
        )

        def of_matrices(x: Array) -> Array:
            m, n = x.shape[-2:]
            return xp.where(finite, x, self.eye(n, x) if m == n else xp.zeros_like(x))

        def or_nan(r: Array) -> Array:
            mask = finite if r.ndim == finite.ndim else finite[..., 0]
            return xp.where(mask, r, xp.full_like(r, math.nan))

        results = run(*map(of_matrices, arrays), **options)
        return tuple(map(or_nan, results)) if isinstance(results, tuple) else or_nan(results)

    return cast(F, of_finite)


class Ops(Arithmetic):
    """Arithmetic on stacks of matrices of one array namespace; functional, any library."""

    @classmethod
    def _of(cls, x: Array, xp: Any) -> Ops:
        """Return the arithmetic for an array of the namespace `xp` of the class."""
        return _shared(cast(Any, cls), xp)

    def _check_sharding(self, x: Array, name: str, *, taken: bool) -> None:
        """Raise an error for an array that is sharded but not accepted, or cannot be used."""

    def _working_in(self, format_name: str) -> Ops:
        """Return the same arithmetic for a native format."""
        other = copy.copy(self)
        other.working = format_name
        other.fused = format_name not in ("float64", "float32")
        return other

    def _of_rounded(self, format_name: str) -> Ops:
        """Return the arithmetic of float32 operands that were rounded to a format."""
        return self

    def _multiplies_rounded(self, format_name: str) -> bool:
        """Return whether such products are those of the format, not simulated."""
        return False

    def _product_of_rounded(
        self, a: Array, b: Array, scales: tuple[Any, Any], format_name: str
    ) -> Array | None:
        """Return ``a @ b`` of float32 matrices whose quotients by scales are of a format.

        The product is computed in the format itself; None if that is impossible for these shapes.
        """
        return None

    # -- factorisations, in at least the precision of the input. A failure does not raise an error:
    # the results of that matrix are NaN, those of the others in its stack are not affected.

    def _is_finite(self, x: Array) -> bool:
        """Return whether every entry of an array on the host is finite."""
        total = self.xp.sum(x)  # not finite if an entry is not, or if the sum overflows
        return bool(self.xp.isfinite(total)) or bool(self.xp.all(self.xp.isfinite(x)))

    def _where_it_can(self, factorise: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
        """Run a factorisation of this class on a device on which the library has it."""
        return factorise(self, *arrays, **options)

    @finite_only
    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Return the thin SVD ``u, s, vh``, values descending; NaN if a matrix is not finite."""

        def lost(x: Array) -> tuple[Array, ...]:
            (m, n), k = x.shape, min(x.shape)
            return tuple(self._nan(x, shape) for shape in ((m, k), (k,), (k, n)))

        u, s, vh = self._factorise(lambda x: self.xp.linalg.svd(x, full_matrices=False), lost, x)
        return u, s, vh

    @finite_only
    def singular_values(self, x: Array) -> Array:
        """Return singular values, descending; NaN for a matrix that is not finite."""
        return unless_it_fails(lambda: self.xp.linalg.svdvals(x), lambda: self.svd(x)[1])

    @finite_only
    def eigh(self, z: Array) -> tuple[Array, Array]:
        """Return ascending eigenvalues, eigenvectors of Hermitian matrices; NaN as :meth:`svd`."""

        def lost(z: Array) -> tuple[Array, ...]:
            return self._nan(z, z.shape[-1:]), self._nan(z, z.shape)

        values, vectors = self._factorise(lambda z: self.xp.linalg.eigh(z), lost, z)
        return values, vectors

    @finite_only
    def qr(self, x: Array) -> tuple[Array, Array]:
        """Return the reduced Householder QR."""
        q, r = self.xp.linalg.qr(x, mode="reduced")
        return q, r

    @finite_only
    def determinant_sign(self, x: Array) -> Array:
        """Return signs of determinants of real matrices, shape (..., 1, 1); NaN as :meth:`svd`."""
        return self.xp.linalg.slogdet(x)[0][..., None, None]

    @finite_only
    def cholesky(self, z: Array) -> Array:
        """Return the lower Cholesky factor of a Hermitian matrix; NaN if not positive definite."""
        return self._factorise(lambda z: (self.xp.linalg.cholesky(z),), self._all_nan, z)[0]

    def is_definite(self, z: Array, shift: Array) -> bool:
        """Return whether ``z - shift I`` has a Cholesky factor, in every matrix of a stack.

        `shift` has the shape (..., 1, 1) of norms.
        """
        return 0 in z.shape or math.isfinite(self.item(self.factor_max_abs(z, shift)))

    def factor_max_abs(self, z: Array, shift: Array) -> Array:
        """Return the largest entry of the Cholesky factor of ``z - shift I``: finite if it exists.

        Used instead of :meth:`is_definite` where the result is read together with others.
        """
        shifted = z - self.eye(z.shape[-1], z) * astype_like(shift, z, self)
        return self.max_abs(self.cholesky(shifted))

    def count_eigenvalues_above(self, h: Array, cut: float) -> np.ndarray:
        """Return how many eigenvalues of Hermitian matrices exceed `cut` times the largest."""
        values = self.to_host(self.eigenvalues(h))
        return np.asarray(np.sum(values > cut * values[..., -1:], axis=-1))

    @finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b`` for lower triangular l; infinite or NaN if singular."""
        l = self.adjoint(l) if adjoint else l
        return self._factorise(lambda l, b: (self.xp.linalg.solve(l, b),), self._all_nan, l, b)[0]

    @finite_only
    def inverse(self, x: Array) -> Array:
        """Return the inverse by LU with partial pivoting; infinite or NaN if singular."""
        return self._factorise(lambda x: (self.xp.linalg.inv(x),), self._all_nan, x)[0]

    @finite_only
    def eigenvalues(self, h: Array) -> Array:
        """Return eigenvalues of Hermitian matrices, ascending, without the vectors."""

        def lost(h: Array) -> tuple[Array]:
            return (self._nan(h, h.shape[-1:]),)

        return self._factorise(lambda h: (self.xp.linalg.eigvalsh(h),), lost, h)[0]

    def _nan(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Return NaN for a failed result: matrices in the dtype of `x`, vectors of values real."""
        dtype = x.dtype if len(shape) > 1 else self._real_dtype(x)
        return self.xp.full(shape, math.nan, dtype=dtype, device=self._device_of(x))

    def _all_nan(self, *matrices: Array) -> tuple[Array]:
        return (self._nan(matrices[-1], matrices[-1].shape),)

    def _factorise(
        self,
        factorise: Callable[..., Sequence[Array]],
        lost: Callable[..., tuple[Array, ...]],
        *stacks: Array,
    ) -> tuple[Array, ...]:
        """Apply a factorisation; if the library raises for a stack, to one matrix at a time."""

        def one_by_one() -> tuple[Array, ...]:
            if stacks[0].ndim == 2:
                return lost(*stacks)
            xp, batch = self.xp, stacks[0].shape[:-2]
            flat = [xp.reshape(s, (-1, *s.shape[-2:])) for s in stacks]
            each = (
                self._factorise(factorise, lost, *(s[i, :, :] for s in flat))
                for i in range(flat[0].shape[0])
            )
            results = zip(*each, strict=True)
            return tuple(xp.reshape(xp.stack(r), (*batch, *r[0].shape)) for r in results)

        return unless_it_fails(lambda: tuple(factorise(*stacks)), one_by_one)

    def kernels(self, x: Array) -> NumpyKernels | None:
        """Return kernels that work in place on matrices like `x`.

        None if the library has none: methods then use the other primitives.
        """
        return None

    def normaliser(self, x: Array) -> Normaliser | None:
        """Return kernels that normalise matrices like `x` on a device; None if there are none.

        Normalisations then use the other primitives.
        """
        return None

    def _host_view(self, x: Array) -> np.ndarray | None:
        """Return NumPy's view of the storage of `x`, if NumPy can view and decomposes it faster."""
        return None

    def _threads_for(self, x: Array) -> AbstractContextManager[None]:
        """Return a context with the best number of threads for decompositions like that of `x`."""
        return nullcontext()

    # -- differentiation, if the library supports it -------------------------------------------

    def functional(self, *arrays: Array) -> Ops:
        """Return an arithmetic that the library can differentiate: no reads, no overwrites.

        If arrays are given and none of them is recorded, this arithmetic is returned.
        """
        return self

    def is_traced(self, x: Array) -> bool:
        """Return whether the library traces or differentiates operations on `x`."""
        return False

    def is_sharded(self, x: Array) -> bool:
        """Return whether `x` is sharded: no device or process has all of it."""
        return False

    def _entrywise(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Return ``f(x)`` for a function of single entries."""
        return f(x)

    def is_abstract(self, x: Array) -> bool:
        """Return whether the entries of `x` cannot be read, since it is traced."""
        return False

    def _place(self, x: Array) -> str:
        """Return the name of the device that holds `x`; "" if unknown or if `x` is sharded."""
        return str(array_api_compat.device(x))

    def _lies_on_several(self, x: Array) -> bool:
        """Return whether several devices hold `x`, which may conflict with the caller's mesh."""
        return False

    def _visible(self, x: Array) -> Array:
        """Return `x` if its entries can be read; TypeError otherwise."""
        if self.is_abstract(x):
            raise TypeError(f"this computation reads entries of its matrix, which {self.hiding}")
        return x

    def with_shards(
        self,
        f: Callable[..., Any],
        x: Array,
        name: str = "a",
        beside: Sequence[Array] = (),
        blocks: int | tuple[int, int] = 1,
    ) -> Any:
        """Return ``f(x, *beside)``, a unitary factor sharded as `x` is, or both factors.

        The arrays `beside` are small, and replicated if `x` is sharded. The matrices are several
        blocks of rows of `x`, or the blocks of a grid of rows and columns.
        """
        return f(x, *beside)

    def computed_once(self, f: Callable[[Array], Array], x: Array) -> Array:
        """Return ``f(x)`` for small matrices, the same on every process that has them."""
        return f(x)

    def repeat_while(
        self, going: Callable[[Any], Array], step: Callable[[Any], Any], state: Any
    ) -> Any:
        """Apply a step to a tuple of arrays while a test of it holds."""
        while bool(going(state)):
            state = step(state)
        return state

    def differentiable(
        self, f: Rule, jvp: Rule, vjp: Rule, arrays: tuple[Array, ...], *, keep: bool
    ) -> tuple[Array, ...]:
        """Return ``f(*arrays)``, which the library differentiates by the given rules.

        Parameters
        ----------
        f : callable
            Function of stacks of matrices that returns a tuple of such stacks.
        jvp : callable
            ``jvp(arrays, results, tangents)`` returns the tangents of the results, linearly.
        vjp : callable
            ``vjp(arrays, results, gradients)`` returns the gradients of the arrays; None is 0.
        arrays : tuple of array
            Arguments.
        keep : bool
            Whether the results are passed to the rules. Otherwise only the arguments are kept, and
            `results` is empty.
        """
        return f(*arrays)

    def lyapunov(
        self, h: Array, w: Array, diagonalise: Callable[[Array], Diagonal], weight: complex = 1.0
    ) -> Array:
        """Solve ``H X + c X H + shift X = W`` for Hermitian H, with derivatives of every order.

        `diagonalise` returns the equation in the basis of eigenvectors of H; c is the weight.
        """
        return self._by_eigenvectors(w, diagonalise(h))

    def sylvester(
        self, a: Array, b: Array, w: Array, solve: Callable[[Array, Array, Array], Array]
    ) -> Array:
        """Return ``solve(a, b, w)``, X of ``A X + X B = W``, with derivatives of every order.

        `solve` is also called with adjoints of A and B, and is not differentiated itself.
        """

        def f(*arrays: Array) -> tuple[Array]:
            return (solve(*arrays),)

        def jvp(arrays: Any, results: Any, tangents: Any) -> tuple[Array]:
            (a, b, _), (x,), (da, db, dw) = arrays, results, tangents
            return (self.sylvester(a, b, dw - self.matmul(da, x) - self.matmul(x, db), solve),)

        def vjp(arrays: Any, results: Any, gradients: Any) -> tuple[Array, ...]:
            a, b, x = (self.adjoint(y) for y in (*arrays[:2], results[0]))
            q = self.sylvester(a, b, gradients[0], solve)
            return -self.matmul(q, x), -self.matmul(x, q), q

        return self.differentiable(f, jvp, vjp, (a, b, w), keep=True)[0]

    def _by_eigenvectors(self, w: Array, d: Diagonal) -> Array:
        v = d.vectors
        core = self.matmul(self.matmul(self.adjoint(v), w), v) / astype_like(d.sums, v, self)
        return self.matmul(self.matmul(v, core), self.adjoint(v))

    def _adjoint_of(self, d: Diagonal) -> Diagonal:
        """Return the adjoint of a diagonalised equation."""
        return d._replace(sums=self.xp.conj(d.sums)) if is_complex(d.sums) else d


def unless_it_fails(factorise: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Run a factorisation; if it raises the library's LinAlgError, return the other value."""
    try:
        return factorise()
    except Exception as error:  # each library has its own class of errors
        if "LinAlg" not in type(error).__name__:
            raise
        return otherwise()


def ops_of(x: Array) -> Ops:
    """Return the arithmetic for an array's library.

    Parameters
    ----------
    x : array
        Array of any supported library.

    Returns
    -------
    Ops

    Examples
    --------
    >>> import numpy as np
    >>> type(ops_of(np.eye(2))).__name__
    'NumpyOps'
    """
    xp = array_namespace(x)
    return _class_for(xp)._of(x, xp)


# Shared by threads: an Ops is not modified after construction.
@functools.cache
def _shared(kind: Any, xp: Any) -> Ops:
    return cast(Ops, kind(xp))


@functools.cache
def _class_for(xp: Any) -> type[Ops]:
    """Return the class for a namespace: that with the name of its library, otherwise `Ops`."""
    for library, kind in served().items():
        if getattr(array_api_compat, f"is_{library}_namespace")(xp):
            return kind
    return Ops


def served() -> dict[str, type[Ops]]:
    """Return the classes of arithmetic by the names of their libraries; `Ops` is for others."""
    return {vars(k)["library"]: k for k in _subclasses(Ops) if "library" in vars(k)}


def import_arrays(name: str) -> Any:
    """Import the module of a library with its functions of arrays."""
    return import_library(served().get(name, Ops).module or name)


def _subclasses(kind: type[Ops]) -> Iterator[type[Ops]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def is_native(ops: Ops, precision: Format, *, is_complex: bool) -> bool:
    """Return whether a library multiplies in a format natively; False for complex 16 bits."""
    wide = precision.name in ("float64", "float32")
    return ops._multiplies_in(precision.name) and (wide or not is_complex)
