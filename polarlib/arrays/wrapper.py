"""Protocol of wrappers of an arithmetic: number formats and dual numbers.

An iteration runs on `Ops` or on a wrapper of it. Every primitive is declared here as one of three
kinds. A wrapper has no other attributes: if unknown names were forwarded to the base, a new
primitive would silently be computed in full precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarlib.arrays.ops import Ops

# Arithmetic and storage: each wrapper defines these.
COMPUTED = frozenset({
    *("add_diagonal", "add_scaled_identity", "combine", "gemm", "gemm_hermitian", "gram"),
    *("make_hermitian", "matmul", "quadratic", "buffer", "reusable"),
})  # fmt: skip
# Exact in every format, since only positions and signs of entries change: forwarded to the base.
EXACT = frozenset({"adjoint"})
# Called only on the base, before and after an iteration; a wrapper may define some of them.
FULL_PRECISION = frozenset({
    "cast",
    *("from_host", "item", "to_host", "writable", "multiplier", "entry_product"),
    *("divide", "scale", "eye", "binary_scale", "divisor"),
    *("hermitian_part", "hermitian_split", "frobenius", "max", "max_abs", "sums"),
    *("cholesky", "count_eigenvalues_above", "determinant_sign", "eigenvalues", "eigh", "inverse"),
    *("factor_max_abs", "is_definite", "qr", "singular_values", "solve_lower", "svd", "lyapunov"),
    "sylvester",
    *("is_sharded", "with_shards", "computed_once", "compiled", "kernels", "normaliser"),
    *("differentiable", "functional", "is_abstract", "is_traced", "repeat_while"),
})  # fmt: skip


def primitives() -> set[str]:
    """Return the names of the public methods of `Ops`."""
    return {name for name in dir(Ops) if name[0] != "_" and callable(getattr(Ops, name))}


def _forward(name: str) -> Callable[..., Any]:
    def forwarded(self: Wrapper, *args: Any, **options: Any) -> Any:
        return getattr(self.base, name)(*args, **options)

    return forwarded


class Wrapper:
    """Base of wrappers; a subclass without a required primitive raises TypeError.

    Attributes
    ----------
    base : Ops
        The arithmetic that is wrapped.
    fused : bool
        Whether the format has at most 16 bits, as in :class:`polarlib.arrays.library.Library`.
    """

    base: Ops
    fused: bool = False

    def __init_subclass__(cls, *, exact: frozenset[str] = EXACT) -> None:
        """Check the protocol, and forward the primitives in `exact`."""
        undeclared = primitives() ^ (COMPUTED | EXACT | FULL_PRECISION)
        if undeclared:
            raise TypeError(
                f"arrays/wrapper.py must declare each primitive of Ops once, and no other name; "
                f"see {sorted(undeclared)}"
            )
        missing = COMPUTED - set(dir(cls))
        if missing:
            raise TypeError(f"{cls.__name__} must define {sorted(missing)}: wrappers compute them")
        for name in exact:
            setattr(cls, name, _forward(name))
