"""torch: products under torch's settings of precision, derivatives by rules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from polarlib.arrays.arithmetic import LONG, MANY
from polarlib.arrays.library import astype_like, format_name, import_library, is_complex, is_known
from polarlib.arrays.normaliser import Normaliser
from polarlib.arrays.ops import Diagonal, Ops, Rule, finite_only, ops_of
from polarlib.arrays.torch_autograd import differentiable_function, is_differentiated, is_recorded
from polarlib.arrays.torch_formats import FormatOps
from polarlib.arrays.torch_normaliser import normaliser
from polarlib.arrays.torch_recorded import RecordedOps
from polarlib.arrays.torch_settings import (
    SIXTEEN_BITS,
    autocasts,
    has_double,
    multiplies_at_speed,
    operand_format,
    significand,
    without_autocast,
)

Array = Any
# Number of multiplications from which torch's Hermitian products are computed by panels, and number
# of panels. Four panels take 10/16 of the operations with large products. Chosen by experiment.
PANELS_FROM = 1 << 29
PANELS = 4
# Number of entries from which NumPy decomposes a matrix 1.1 to 1.6 times as fast. By experiment.
VIEWED = 1 << 18
# Number of rows from which singular values by torch's LAPACK have errors of at least 50 eps.
VERY_LONG = 1 << 16
# Largest number of entries per norm of torch: for more, up to 1 % is lost (4000 x 4000, all equal).
NORM_BLOCK = 1 << 10
# Names of torch's settings for exact float32 products, and for narrower formats.
EXACT = frozenset({"none", "ieee"})
REDUCED = {"tf32": "tf32", "bf16": "bfloat16"}


class TorchOps(FormatOps):
    """torch tensors: fused products with addend, and ``out=`` where no gradient is recorded."""

    native = frozenset({"float64", "float32", "bfloat16", "float16"})
    hiding = (
        "torch.export, torch.jit.trace, meta and fake tensors hide: call it on tensors with entries"
    )

    # Whether float32 is multiplied under torch's settings, not in full precision.
    as_set = False
    # Whether torch differentiates each product later, under the settings of that time.
    open_ended = False

    def __init__(self, xp: Any, device: Any, *, fused: bool = False, host: bool = True) -> None:
        super().__init__(xp, fused=fused)
        self.host = host
        self.device = device
        self.torch = torch = import_library("torch")
        self._kind = device.type
        self.autocasts = autocasts(device.type)
        self._single = torch.float32, torch.complex64

    def functional(self, *arrays: Array) -> Ops:
        """Return the arithmetic for what torch itself may differentiate or batch."""
        if arrays and not any(ops_of(x).is_traced(x) for x in arrays):
            return self
        # Second derivatives are rare: only under autocast products are computed without it.
        under_autocast = self.autocasts and self.torch.is_autocast_enabled(self.device.type)
        # torch differentiates products of given arrays later, under the settings of that time.
        return TorchGradOps(self.xp, self.device, open_ended=bool(arrays) or under_autocast)

    def _working_in(self, format_name: str) -> Ops:
        """Return the same arithmetic for a native format; tf32 is native where torch is set so."""
        other: Any = super()._working_in(format_name)
        other.as_set = format_name == "tf32"
        return cast(Ops, other)

    # -- settings of torch: autocast and the precision of float32 products. They are read, not
    # changed, since they are those of the process; every product is computed by _in_full.

    def multiplier(self, x: Array) -> str:
        """Return the format of products of `x`; for float32 it depends on settings and device.

        Complex products are computed in full precision under every setting.
        """
        return self._operands(x.dtype) if x.dtype == self.torch.float32 else format_name(x)

    def _multiplies_in(self, format_name: str) -> bool:
        """Return whether torch has products in a format; tf32 only under a setting."""
        if format_name != "tf32":
            return format_name in self.native
        return self._operands(self.torch.float32) == "tf32"

    def _multiplies_at_speed(self, format_name: str) -> bool:
        """Return whether products in a native format are as fast as in float32; CPUs differ."""
        known = format_name not in SIXTEEN_BITS or self.device.type != "cpu"
        return known or multiplies_at_speed(format_name)

    def _operands(self, dtype: Any) -> str:
        """Return the name of the format to which torch rounds operands of single precision."""
        torch = self.torch
        if self._is_exact:
            return "float32"
        believed = min((REDUCED.get(s, "float32") for s in self._setting), key=significand)
        captured = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if captured or torch.compiler.is_compiling():
            return believed
        try:
            return operand_format(self._setting, self.device, dtype)
        except RuntimeError:  # tensors without entries
            return believed

    @functools.cached_property
    def _setting(self) -> tuple[str, str]:
        """Return torch's settings; reading them takes as long as a small product."""
        of_cpu, of_cuda = self.torch.backends.mkldnn.matmul, self.torch.backends.cuda.matmul
        return of_cpu.fp32_precision, of_cuda.fp32_precision

    @functools.cached_property
    def _is_exact(self) -> bool:
        """Whether torch is set to multiply float32 in full precision."""
        return EXACT.issuperset(self._setting)

    def _is_plain(self, a: Array, b: Array) -> bool:
        """Return whether torch's product of two stacks is the one that `_in_full` would use."""
        return (
            (a.dtype not in self._single or (self._is_exact and not self.open_ended))
            and a.dtype == b.dtype
            and (a.shape[-1] < LONG or a.dtype.itemsize == 2)
            and not (self.autocasts and self.torch.is_autocast_enabled(self._kind))
        )

    def _in_full(
        self, f: Callable[..., Any], *x: Array, out: Array | None = None, double: bool = False
    ) -> Any:
        """Return ``f(*x)`` in the format of `x`: no autocast, no reduced products.

        If torch is set to less than float32, a setting on which other threads may rely, products
        are computed in double precision and rounded. So are recorded products, whose derivatives
        are then not affected by settings or autocast.
        """
        if self.autocasts and self.torch.is_autocast_enabled(self._kind):
            with without_autocast(self.device):
                return self._in_full(f, *x, out=out, double=double)
        if not double and not self._needs_double(x[0]):
            return f(*x) if out is None else f(*x, out=out)
        wide = self._double(x[0])
        result = f(*(t.to(wide) for t in x))
        if out is not None:
            return out.copy_(result)
        if isinstance(result, tuple):
            return tuple(self._narrowed(t, x[0]) for t in result)
        return self._narrowed(result, x[0])

    def _narrowed(self, t: Array, like: Array) -> Array:
        """Convert from double to the single precision of `like`; real arrays stay real."""
        return t.to(like.dtype if is_complex(t) else self.torch.float32)

    def _needs_double(self, x: Array) -> bool:
        """Return whether torch would multiply in less than the precision of `x`, now or later."""
        if x.dtype not in self._single or self.as_set:
            return False
        return self.open_ended or self._operands(x.dtype) != "float32"

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return ``a @ b``."""
        if self._is_plain(a, b):
            # torch.matmul copies the products of stacks into `out`.
            stacks = a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0]
            return (self.torch.bmm if stacks else self.torch.matmul)(a, b, out=out)
        return self._in_full(super().matmul, a, b, out=out)

    def adjoint(self, x: Array) -> Array:
        """Return the conjugate transpose, by functions that vmap supports."""
        views = not x.dtype.is_complex or self.torch._C._functorch.maybe_current_level() is None
        return x.mH if views else x.mH.resolve_conj()

    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """Return the thin SVD ``u, s, vh``; very long columns in double, for LAPACK's sums."""
        u, s, vh = self._in_full(super().svd, x, double=self._is_very_long(x))
        return u, s, vh

    def singular_values(self, x: Array) -> Array:
        """Return singular values, descending; of very long columns in double."""
        return self._in_full(super().singular_values, x, double=self._is_very_long(x))

    def eigh(self, z: Array) -> tuple[Array, Array]:
        """Eigenvalues of Hermitian matrices, ascending, and eigenvectors; NaN as for the SVD."""
        values, vectors = self._in_full(super().eigh, z)
        return values, vectors

    def determinant_sign(self, x: Array) -> Array:
        """Signs of the determinants of real matrices, shape (..., 1, 1); NaN as for the SVD."""
        return self._in_full(super().determinant_sign, x)

    def _is_very_long(self, x: Array) -> bool:
        few, many = sorted(x.shape[-2:])
        return self.host and many >= VERY_LONG and few < MANY and x.dtype in self._single

    def sums(self, x: Array, axis: int) -> Array:
        """Return sums along an axis, which keeps length 1; torch adds in pairs."""
        return self.xp.sum(x, axis=axis, keepdims=True)

    def is_traced(self, x: Array) -> bool:
        """Return whether gradients or forward derivatives are recorded, or vmap batches."""
        return is_differentiated(x, self.torch)

    def is_abstract(self, x: Array) -> bool:
        """Return whether operations are recorded for other entries, or there are no entries."""
        return x.device.type == "meta" or self._is_recorded(x)

    def _is_recorded(self, x: Array) -> bool:
        """Return whether operations on `x` are recorded, or `x` is a fake tensor."""
        torch = self.torch
        if torch.jit.is_tracing():
            return True
        # torch.func wraps tensors: the dispatch mode, not the type, shows fake ones.
        if torch._C._len_torch_dispatch_stack() and is_recorded():
            return True
        if type(x) is torch.Tensor or type(x) is torch.nn.Parameter:
            return False
        fake = torch._subclasses
        return isinstance(x, (fake.FakeTensor, fake.functional_tensor.FunctionalTensor))

    def _place(self, x: Array) -> str:
        """Return the name of the device that holds `x`; one name for all CPU devices."""
        return "cpu" if x.device.type == "cpu" else str(x.device)

    def differentiable(
        self, f: Rule, jvp: Rule, vjp: Rule, arrays: tuple[Array, ...], *, keep: bool
    ) -> tuple[Array, ...]:
        """Return ``f(*arrays)``, as an operation of autograd, torch.func and vmap."""
        if self.torch.jit.is_tracing() or not any(self.is_traced(x) for x in arrays):
            return f(*arrays)  # a trace can only have operations of torch
        results: tuple[Array, ...] = differentiable_function().apply(f, jvp, vjp, keep, *arrays)
        return results

    def lyapunov(
        self, h: Array, w: Array, diagonalise: Callable[[Array], Diagonal], weight: complex = 1.0
    ) -> Array:
        """Solve ``H X + c X H + shift X = W``; its derivative solves the same equation."""
        conjugate = weight.conjugate()

        def f(h: Array, w: Array) -> tuple[Array]:
            return (self._by_eigenvectors(w, diagonalise(h)),)

        def jvp(arrays: Any, results: Any, tangents: Any) -> tuple[Array]:
            (h, _), (x,), (dh, dw) = arrays, results, tangents
            moved = self.matmul(dh, x) + weight * self.matmul(x, dh)
            return (self.lyapunov(h, dw - moved, diagonalise, weight),)

        def vjp(arrays: Any, results: Any, gradients: Any) -> tuple[Array, Array]:
            w = self.lyapunov(
                arrays[0], gradients[0], lambda h: self._adjoint_of(diagonalise(h)), conjugate
            )
            adjoint = self.adjoint(results[0])
            return -(self.matmul(w, adjoint) + conjugate * self.matmul(adjoint, w)), w

        return self.differentiable(f, jvp, vjp, (h, w), keep=True)[0]

    def _host_view(self, x: Array) -> np.ndarray | None:
        """Return a view of one matrix of at least `VIEWED` entries on the CPU, else None."""
        torch = self.torch
        plain = type(x) in (torch.Tensor, torch.nn.Parameter)
        if not plain or x.ndim != 2 or x.device.type != "cpu":
            return None
        if x.numel() < VIEWED or x.dtype not in (torch.float64, torch.complex128, *self._single):
            return None
        return cast(np.ndarray, x.detach().resolve_conj().resolve_neg().numpy())

    def _has_double(self, x: Array) -> bool:
        """Return True, except on Apple's GPUs and some of Intel's."""
        return has_double(x.device)

    def _where_it_can(self, factorise: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
        """Run a factorisation, on the host if the device lacks it, as Apple's GPUs do."""
        try:
            return factorise(self, *arrays, **options)
        except NotImplementedError:
            if self.device.type in ("cpu", "meta"):
                raise
        host = [x.cpu() for x in arrays]
        results = getattr(ops_of(host[0]), factorise.__name__)(*host, **options)
        if isinstance(results, tuple):
            return tuple(r.to(self.device) for r in results)
        return results.to(self.device)

    def _dtype(self, name: str) -> Any:
        """Return torch's dtype; the array API namespace has only some of them."""
        return getattr(self.torch, name)

    def add_diagonal(self, z: Array, a: Array) -> Array:
        """Return ``z + a I`` in the storage of `z`; torch would round `a` to 16 bits first."""
        if not self.fused:
            return super().add_diagonal(z, a)
        diagonal = self._diagonal(z)
        a = a if is_known(a) else a[..., 0]
        self.torch.add(diagonal.to(self.torch.float32), a, out=diagonal)
        return z

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array | None:
        """Return storage for an ``out=``, in the memory order of `like` if it has its shape."""
        if shape == tuple(like.shape) and like.ndim == 2 and like.stride(-1) > like.stride(-2):
            return self.torch.empty(shape[::-1], dtype=like.dtype, device=like.device).mT
        return self.torch.empty(shape, dtype=like.dtype, device=like.device)

    def reusable(self, x: Array) -> bool:
        """Return whether the storage of `x` serves as an ``out=``: only if it is contiguous."""
        return bool(x.is_contiguous() or (x.ndim == 2 and x.mT.is_contiguous()))

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        wide = self.torch.complex128 if is_complex(x) else self.torch.float64
        # Moved to the host first, since the device may lack double precision.
        return np.asarray(x.detach().cpu().to(dtype=wide, copy=True).resolve_conj().numpy())

    def item(self, x: Array) -> float:
        """Return the largest entry as a Python float (a synchronisation on a device)."""
        x = x.detach()
        return float(x if x.numel() == 1 else x.max())

    def max_abs(self, x: Array) -> Array:
        """Largest absolute entry, of real and imaginary parts; one pass over a real matrix."""
        if is_complex(x) or x.ndim > 2 or self.device.type not in ("cpu", "cuda"):
            return super().max_abs(x)
        low, high = self.torch.aminmax(x if x.is_contiguous() else x.mT)  # copies if not contiguous
        return self.torch.maximum(high, -low).reshape(1, 1)

    def frobenius(self, x: Array) -> Array:
        """Frobenius norm without a temporary, accumulated in at least single precision."""
        norm = functools.partial(self.torch.linalg.vector_norm, keepdim=True)
        wide = format_name(x) in ("float32", "float64")
        kind = None if wide else self.torch.float32
        if x.shape[-2] * x.shape[-1] <= 4 * NORM_BLOCK:
            return norm(x, dim=(-2, -1), dtype=kind)
        # Along memory: reductions with conversion are slow across memory, or over all axes.
        flat = (x if x.is_contiguous() else x.mT).flatten(-2)
        end = flat.shape[-1] // NORM_BLOCK * NORM_BLOCK
        blocks = norm(flat[..., :end].unflatten(-1, (-1, NORM_BLOCK)), dim=-1, dtype=kind)
        total = norm(blocks, dim=(-2, -1), dtype=self._double(blocks))
        if end == flat.shape[-1]:
            return total.to(blocks.dtype)
        rest = norm(flat[..., None, end:], dim=-1, dtype=kind)
        return norm(self.torch.cat((total, rest), dim=-1), dim=-1).to(blocks.dtype)

    def normaliser(self, x: Array) -> Normaliser | None:
        """Return two operators, for real matrices of 16 or 32 bits on devices with double."""
        taken = not self.host and x.dtype.is_floating_point and x.dtype.itemsize <= 4
        return normaliser() if taken and self._has_double(x) else None

    def divide(self, x: Array, s: Array | float, *, may_overwrite: bool = False) -> Array:
        """Return ``x / s`` in the dtype of `x`, and in its storage if that may be overwritten."""
        return self.torch.div(x, s, out=x if may_overwrite else self.buffer(tuple(x.shape), x))

    def gemm(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``, rounded once."""
        if not (is_known(alpha) and is_known(beta)):
            return self._by_combination(a, b, c, alpha, beta)
        add = self.torch.addmm if a.ndim == 2 else self.torch.baddbmm
        contiguous = out is None or out.is_contiguous()
        if a.ndim <= 3 and contiguous and c.dtype == a.dtype and self._is_plain(a, b):
            return add(c, a, b, beta=beta, alpha=alpha, out=out)
        multiply = functools.partial(add, beta=beta, alpha=alpha)
        product = functools.partial(self._in_full, multiply)
        if a.ndim == 2 and not contiguous:
            product(c.mT, b.mT, a.mT, out=out.mT)
            return out
        if a.ndim <= 3:
            return product(c, a, b, out=out)
        stack = [t.flatten(0, -3) for t in (c, a, b)]  # also of empty matrices, as shards are
        flat = None if out is None else out.view(stack[0].shape)
        return product(*stack, out=flat).reshape(c.shape)

    def combine(self, coefficients: Sequence[float], matrices: Sequence[Array]) -> Array:
        """Return ``sum c_i M_i``, rounded once; one matrix needs no copy in float32 for that."""
        first = matrices[0]
        if len(matrices) == 1:
            return astype_like(first * coefficients[0], first, self)
        if len(matrices) > 2 or is_known(coefficients[1]):
            return super().combine(coefficients, matrices)
        # With an array of at least single precision, a sum is rounded when it is stored.
        c, out = coefficients[0], self.buffer(tuple(first.shape), first)
        total = first if is_known(c, 1.0) else first * c
        return astype_like(
            self.torch.addcmul(total, matrices[1], coefficients[1], out=out), first, self
        )

    def gram(self, x: Array, out: Array | None = None) -> Array:
        """Return ``x^H x``, large ones by panels."""
        h = self.adjoint(x)
        if self._is_long(h, x) or not self._by_panels(h, x):
            return self.matmul(h, x, out)
        return self.gemm_hermitian(h, x, x, out=out)

    def gemm_hermitian(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``, Hermitian: panels from the diagonal on, and mirrored."""
        known = is_known(alpha) and is_known(beta)
        if not known or not self._by_panels(a, b):
            return self.gemm(a, b, c, alpha, beta, out)
        torch, n = self.torch, a.shape[0]
        out = torch.empty((n, n), dtype=a.dtype, device=a.device) if out is None else out
        width = -(-n // PANELS)
        for i in range(0, n, width):
            j = min(i + width, n)
            panel = out[i:j, i:]
            if beta:
                add = functools.partial(torch.addmm, beta=beta, alpha=alpha)
                self._in_full(add, c[i:j, i:], a[i:j], b[:, i:], out=panel)
            else:
                self._in_full(torch.mm, a[i:j], b[:, i:], out=panel)
                if alpha != 1.0:
                    panel *= alpha
            out[j:, i:j] = self.adjoint(out[i:j, j:])
        return out

    def _by_panels(self, a: Array, b: Array) -> bool:
        """Return whether a Hermitian product on the host is faster by several calls."""
        n, k = a.shape[-2:]
        return self.host and a.ndim == 2 and n >= 512 and n * n * k >= PANELS_FROM

    @finite_only
    def qr(self, x: Array) -> tuple[Array, Array]:
        """Return the reduced QR; by SciPy where MKL's is NaN (complex matrices of low rank)."""
        q, r = super().qr(x)
        if not self.host or self._is_finite(q):
            return q, r
        host = x.detach().resolve_conj().numpy()
        q, r = (self.torch.as_tensor(factor) for factor in ops_of(host).qr(host))
        return q, r

    @finite_only
    def cholesky(self, z: Array) -> Array:
        """Return the lower Cholesky factor; NaN where it is not positive definite."""
        factor, info = self.torch.linalg.cholesky_ex(z)
        return self.torch.where((info == 0)[..., None, None], factor, math.nan)

    @finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``."""
        solve = functools.partial(self.torch.linalg.solve_triangular, upper=adjoint)
        return self._in_full(solve, self.adjoint(l) if adjoint else l, b)

    @finite_only
    def inverse(self, x: Array) -> Array:
        """Return the inverse by LU; NaN if singular."""

        def invert(x: Array) -> Array:
            inverse, info = self.torch.linalg.inv_ex(x)
            return self.torch.where((info == 0)[..., None, None], inverse, math.nan)

        return self._in_full(invert, x)


class TorchGradOps(RecordedOps, TorchOps):
    """torch tensors that record gradients: nothing is written in place."""

    gram = Ops.gram
    gemm_hermitian = Ops.gemm_hermitian
    normaliser = Ops.normaliser

    def __init__(self, xp: Any, device: Any, *, open_ended: bool = False) -> None:
        super().__init__(xp, device, host=False)
        self.open_ended = open_ended and has_double(device)

    def is_traced(self, x: Array) -> bool:
        """Return True, since it cannot be excluded."""
        return True

    # Derivatives of factorisations consist of products.

    def qr(self, x: Array) -> tuple[Array, Array]:
        """Return the reduced Householder QR."""
        q, r = self._in_full(super().qr, x)
        return q, r

    def cholesky(self, z: Array) -> Array:
        """Return the lower Cholesky factor; NaN where it is not positive definite."""
        return self._in_full(super().cholesky, z)

    buffer = Ops.buffer
    reusable = Ops.reusable
    add_scaled_identity = Ops.add_scaled_identity
    add_diagonal = Ops.add_diagonal
    divide = Ops.divide


class TorchTracedOps(TorchGradOps):
    """torch tensors of unknown entries, under torch.export, torch.jit.trace and the like."""

    is_traced = TorchOps.is_traced
