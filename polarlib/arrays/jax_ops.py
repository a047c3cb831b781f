"""JAX: functional, traceable, sharded."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from polarlib.arrays.checks import TAKING_SHARDS
from polarlib.arrays.jax_sharded import (
    Blocks,
    each,
    explicit_sharding,
    known_sharding,
    mesh_of,
    run_sharded,
    warn_of_gather,
)
from polarlib.arrays.library import import_library, on_cpu
from polarlib.arrays.ops import Diagonal, Ops, Rule, finite_only
from polarlib.arrays.pytrees import Pytree
from polarlib.arrays.routines import LETTERS
from polarlib.arrays.settings import under_default_settings

Array = Any
# JAX's names of the backends of NVIDIA's and AMD's devices.
GPUS = frozenset({"gpu", "cuda", "rocm"})


@functools.lru_cache(maxsize=256)
def _jitted(f: Callable[..., Array], fixed: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """Return one compiled function for equal arguments; JAX traces it once per shape."""
    jax = import_library("jax")
    compiled: Callable[..., Array] = jax.jit(functools.partial(f, **dict(fixed)))
    return compiled


@functools.cache
def _register(kind: Any) -> None:
    """Make a class of results a pytree of JAX."""
    names = [f.name for f in dataclasses.fields(kind) if f.name not in kind.static]
    with contextlib.suppress(ValueError):  # another thread has registered the class
        jax = import_library("jax")
        jax.tree_util.register_dataclass(kind, names, kind.static)


class JaxOps(Ops):
    """JAX: functional, traceable under jit."""

    library = "jax"
    module = "jax.numpy"
    native = frozenset({"float64", "float32", "bfloat16", "float16"})
    fixed_work = True
    # Whether operands of products are numbers of tf32.
    _reads_tf32 = False
    _host_device = None  # NumPy reads arrays of every device, also sharded ones
    hiding = (
        "jax.jit and jax.vmap hide: call it outside of jit (under grad it may be) and on a whole "
        "stack instead of vmap"
    )

    @classmethod
    def _of(cls, x: Array, xp: Any) -> Ops:
        """Return the arithmetic; the first call registers classes of results as pytrees of JAX."""
        for kind in Pytree.__subclasses__():
            _register(cast(Any, kind))
        return super()._of(x, xp)

    def _check_sharding(self, x: Array, name: str, *, taken: bool) -> None:
        """Raise an error for explicitly sharded matrices where whole ones are needed."""
        if taken:
            return
        sharding = explicit_sharding(x)
        spec = () if sharding is None else (*sharding.spec, *[None] * x.ndim)[: x.ndim]
        if any(axes is not None for axes in spec[-2:]):
            raise TypeError(
                f"{name} is sharded along explicit axes, {sharding.spec}, which only "
                f"{TAKING_SHARDS} accept; pass the whole array, "
                f"jax.sharding.reshard({name}, jax.sharding.PartitionSpec())"
            )

    def _where_it_can(self, factorise: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
        """Factorise; warn for matrices of which no device has all, where that is known."""
        for x in arrays:
            warn_of_gather(x, factorise.__name__)
        return super()._where_it_can(factorise, *arrays, **options)

    def _host_view(self, x: Array) -> np.ndarray | None:
        """Return a view of one matrix on a CPU: eager JAX takes 2 to 5 times as long as NumPy."""
        jax = import_library("jax")
        if x.ndim != 2 or isinstance(x, jax.core.Tracer) or not on_cpu(x) or self.is_sharded(x):
            return None
        return np.asarray(x) if x.dtype.char in LETTERS else None

    def _has_double(self, x: Array) -> bool:
        """Return whether 64-bit types are enabled."""
        return bool(import_library("jax").config.jax_enable_x64)

    def _matmul(self, a: Array, b: Array) -> Array:
        """Return ``a @ b`` in full precision; the default is tf32 on GPUs, bfloat16 on TPUs."""
        full = functools.partial(self.xp.matmul, precision="highest")
        if a.dtype == b.dtype and a.dtype.itemsize == 2 and mesh_of(a) is not None:
            # Otherwise sums over devices would be in the format of the matrix.
            return full(a, b, preferred_element_type=self.xp.float32).astype(a.dtype)
        if not self._reads_tf32 or a.dtype != self.xp.float32 or b.dtype != a.dtype:
            return full(a, b)
        # The platform of a program is known when it is lowered.
        lax = import_library("jax").lax
        native = functools.partial(self.xp.matmul, precision=lax.DotAlgorithmPreset.TF32_TF32_F32)
        return lax.platform_dependent(a, b, cuda=native, rocm=native, default=full)

    def _of_rounded(self, format_name: str) -> Ops:
        """Return the arithmetic of operands that were rounded to a format: tf32 by tensor cores."""
        if format_name != "tf32":
            return self
        other = copy.copy(self)
        other._reads_tf32 = True
        return other

    def _multiplies_rounded(self, format_name: str) -> bool:
        """Return whether the default device multiplies in tf32."""
        return format_name == "tf32" and import_library("jax").default_backend() in GPUS

    def _is_long(self, a: Array, b: Array) -> bool:
        """Return False for traced and sharded arrays, whose shards blocks could cut."""
        known = not (
            self.is_traced(a) or self.is_traced(b) or self.is_sharded(a) or self.is_sharded(b)
        )
        return known and super()._is_long(a, b)

    def compiled(self, f: Callable[..., Array], **fixed: Any) -> Callable[..., Array]:
        """Return ``f`` with all but its arrays fixed, as one compiled function."""
        return _jitted(f, tuple(sorted(fixed.items())))

    def writable(self, x: Array) -> bool:
        """Return False: JAX arrays are immutable."""
        return False

    def is_traced(self, x: Array) -> bool:
        """Return whether JAX traces: under grad, jvp, vmap or jit."""
        return isinstance(x, import_library("jax").core.Tracer)

    def is_sharded(self, x: Array) -> bool:
        """Return whether no device has all of `x`; under jit known for explicit axes alone."""
        if self.is_traced(x) and mesh_of(x) is None:
            return False
        sharding = known_sharding(x)
        return sharding is not None and not sharding.is_fully_replicated

    def to_host(self, x: Array) -> np.ndarray:
        """Copy to NumPy in float64 or complex128."""
        return super().to_host(self._visible(x))

    def item(self, x: Array) -> float:
        """Return the largest entry as a Python float (a synchronisation on a device)."""
        return float(self._visible(self.max(x)))

    def _place(self, x: Array) -> str:
        """Return the devices that each hold all of `x`; "" for traced and sharded arrays."""
        if self.is_traced(x) or self.is_sharded(x):
            return ""
        return " and ".join(sorted(map(str, x.sharding.device_set)))

    def _lies_on_several(self, x: Array) -> bool:
        """Return whether several devices hold `x`, or parts of it; False for traced arrays."""
        return not self.is_traced(x) and len(x.sharding.device_set) > 1

    def _device_of(self, x: Array) -> Any:
        """Return the placement of small matrices that are combined with `x`: all of its devices."""
        if not self._lies_on_several(x):
            return super()._device_of(x)
        sharding = import_library("jax").sharding
        if not isinstance(x.sharding, sharding.NamedSharding):
            return None
        return sharding.NamedSharding(x.sharding.mesh, sharding.PartitionSpec())

    def with_shards(
        self,
        f: Callable[..., Any],
        x: Array,
        name: str = "a",
        beside: Sequence[Array] = (),
        blocks: Blocks = 1,
    ) -> Any:
        """Return ``f(x, *beside)``, the longer side sharded."""
        if mesh_of(x) is not None:
            return run_sharded(f, x, name, beside, blocks)
        if self.is_traced(x) or not self._lies_on_several(x):
            return f(x, *beside)
        # A sharding without a mesh, as XLA may have chosen.
        return each(f(x, *beside), lambda u: import_library("jax").device_put(u, x.sharding))

    def is_abstract(self, x: Array) -> bool:
        """Return whether `x` is traced without entries."""
        return self.is_traced(x)

    def repeat_while(
        self, going: Callable[[Any], Array], step: Callable[[Any], Any], state: Any
    ) -> Any:
        """Apply a step to a tuple of arrays while a test of it holds, without synchronisation."""
        return import_library("jax").lax.while_loop(going, step, state)

    def differentiable(
        self, f: Rule, jvp: Rule, vjp: Rule, arrays: tuple[Array, ...], *, keep: bool
    ) -> tuple[Array, ...]:
        """Return ``f(*arrays)`` with a rule for forward derivatives, which JAX transposes.

        If results are not kept, intermediate results are recomputed by ``jax.checkpoint``.
        """
        if not any(self.is_traced(x) for x in arrays):
            return f(*arrays)
        jax = import_library("jax")

        f, jvp = under_default_settings(f), under_default_settings(jvp)

        # JAX may pass NumPy's arrays.
        function = jax.custom_jvp(lambda *arrays: f(*map(self.xp.asarray, arrays)))

        def rule(primals: Any, tangents: Any) -> Any:
            primals = tuple(map(self.xp.asarray, primals))
            results = function(*primals)
            if keep:
                return results, jvp(primals, results, tangents)
            return results, jax.checkpoint(lambda x, e: jvp(x, (), e))(primals, tangents)

        function.defjvp(rule)
        results: tuple[Array, ...] = function(*arrays)
        return results

    def lyapunov(
        self, h: Array, w: Array, diagonalise: Callable[[Array], Diagonal], weight: complex = 1.0
    ) -> Array:
        """Solve the equation; JAX differentiates it, not the eigenvectors."""
        if not (self.is_traced(h) or self.is_traced(w)):
            return super().lyapunov(h, w, diagonalise, weight)
        lax = import_library("jax").lax
        d = diagonalise(lax.stop_gradient(h))  # without the derivative of eigenvectors
        conj = self.xp.conj

        def multiplied(x: Array) -> Array:
            y = self.matmul(h, x) + weight * self.matmul(x, h)
            return y if d.shift is None else y + d.shift * x

        return lax.custom_linear_solve(
            multiplied,
            w,
            lambda _, b: self._by_eigenvectors(b, d),
            lambda _, b: conj(self._by_eigenvectors(conj(b), self._adjoint_of(d))),
        )

    def sylvester(
        self, a: Array, b: Array, w: Array, solve: Callable[[Array, Array, Array], Array]
    ) -> Array:
        """Solve ``A X + X B = W``; JAX transposes the equation, not the solution."""
        if not any(self.is_traced(x) for x in (a, b, w)):
            return super().sylvester(a, b, w, solve)
        lax, conj = import_library("jax").lax, self.xp.conj
        c, d = lax.stop_gradient(a), lax.stop_gradient(b)
        return lax.custom_linear_solve(
            lambda x: self.matmul(a, x) + self.matmul(x, b),
            w,
            lambda _, r: solve(c, d, r),
            lambda _, r: conj(solve(self.adjoint(c), self.adjoint(d), conj(r))),
        )

    def max(
        self, x: Array, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Return the largest entries, NaN where one is NaN, which XLA loses for 4096 and more."""
        xp = self.xp
        lost = xp.any(xp.isnan(x), axis=axis, keepdims=keepdims)
        return xp.where(lost, math.nan, xp.max(x, axis=axis, keepdims=keepdims))

    def gemm(
        self, a: Array, b: Array, c: Array, alpha: float = 1.0, beta: float = 0.0, out: Array = None
    ) -> Array:
        """Return ``alpha a @ b + beta c``; 16-bit products are added in float32, rounded once.

        JAX would round Python scalars to the 16-bit format; they are combined with float32 arrays.
        """
        if not self.fused:
            return super().gemm(a, b, c, alpha, beta)
        wide = self.xp.float32
        product = self.xp.matmul(a, b, precision="highest", preferred_element_type=wide)
        return (product * alpha + c.astype(wide) * beta).astype(a.dtype)

    @finite_only
    def solve_lower(self, l: Array, b: Array, *, adjoint: bool = False) -> Array:
        """Return ``l^-1 b`` or ``l^-H b``."""
        solve = import_library("jax.scipy.linalg").solve_triangular
        return solve(l, b, lower=True, trans="C" if adjoint else "N")
