"""cuBLAS's ``cublasLtMatmul`` by ctypes: ``D <- alpha op(A) op(B) + beta C`` with D apart from C.

``gemmEx`` adds to the result, so that an addend must be copied there first. CuPy does not bind
cublasLt. The library is installed with cuBLAS, and accepts its handle. If the library or one of its
names is missing, or if it has no algorithm for a product, callers copy the addend.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import Any, NamedTuple

from polarlib.arrays.library import import_library

# Values of cublasLt.h and cublas_api.h, checked against the headers in the tests.
SUCCESS = 0
CONSTANTS = {
    "CUBLAS_STATUS_SUCCESS": SUCCESS,
    "CUBLASLT_MATMUL_DESC_POINTER_MODE": 2,
    "CUBLASLT_MATMUL_DESC_TRANSA": 3,
    "CUBLASLT_MATMUL_DESC_TRANSB": 4,
    "CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT": 5,
    "CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET": 6,
    "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES": 1,
    "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK": 3,
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES": 5,
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES": 6,
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES": 7,
    "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES": 8,
    "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE": 2,
}
ALIGNMENTS = tuple(f"CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{x}_BYTES" for x in "ABCD")
# Largest alignment that algorithms require, in bytes: the default of the preference.
MOST_ALIGNED = 256
# Workspace that NVIDIA recommends for Hopper and Blackwell, from CuPy's pool during a product.
WORKSPACE = 32 << 20

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SET = (_POINTER, _INT, _POINTER, _SIZE)
# Arguments of the functions, all of which return a status.
FUNCTIONS = {
    "cublasLtMatmulDescCreate": (_POINTER, _INT, _INT),
    "cublasLtMatmulDescSetAttribute": _SET,
    "cublasLtMatmulDescDestroy": (_POINTER,),
    "cublasLtMatrixLayoutCreate": (
        *(_POINTER, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    ),
    "cublasLtMatrixLayoutSetAttribute": _SET,
    "cublasLtMatrixLayoutDestroy": (_POINTER,),
    "cublasLtMatmulPreferenceCreate": (_POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": _SET,
    "cublasLtMatmulPreferenceDestroy": (_POINTER,),
    "cublasLtMatmulAlgoGetHeuristic": (*(_POINTER,) * 7, _INT, _POINTER, _POINTER),
    "cublasLtMatmul": (*(_POINTER,) * 14, _SIZE, _POINTER),
}


class Heuristic(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: an algorithm and its workspace size."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class Product(NamedTuple):
    """All properties on which the choice of an algorithm depends, except the device.

    Matrices are column-major. Tuples of four have one number per operand A, B, C, D.

    Attributes
    ----------
    operations : tuple of int
        cuBLAS's operations on A and B.
    sizes : tuple of int
        Rows m and columns n of D, and the inner dimension k.
    types : tuple of int
        CUDA's type of the entries, cuBLAS's compute type, CUDA's type of alpha and beta.
    leading, steps : tuple of int
        Leading dimensions, and steps between the matrices of a stack.
    matrices : int
        Number of matrices in the stack.
    mode : int
        Pointer mode: whether alpha and beta are on the host (0) or the device (1).
    alignments : tuple of int
        Powers of two in bytes that divide the addresses, at most `MOST_ALIGNED`.
    """

    operations: tuple[int, int]
    sizes: tuple[int, int, int]
    types: tuple[int, int, int]
    leading: tuple[int, ...]
    steps: tuple[int, ...]
    matrices: int
    mode: int
    alignments: tuple[int, ...]


@functools.lru_cache(maxsize=1)
def library() -> Any:
    """Return the library, located as CuPy locates cuBLAS; None if it or a name of it is missing."""
    try:
        located = import_library("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt")
        loaded = ctypes.CDLL(located.abs_path)
        loaded.cublasLtGetStatusName.restype = ctypes.c_char_p
        loaded.cublasLtGetStatusName.argtypes = (_INT,)
        for name, arguments in FUNCTIONS.items():
            getattr(loaded, name).argtypes = arguments
    except (ImportError, OSError, AttributeError, RuntimeError):  # the last is pathfinder's
        return None
    return loaded


def aligned(address: int) -> int:
    """Return the largest power of two that divides an address, at most `MOST_ALIGNED`."""
    return min(MOST_ALIGNED, address & -address)


def multiply(
    cupy: Any, handle: int, product: Product, scalars: tuple[int, int], addresses: tuple[int, ...]
) -> bool:
    """Compute a product on the current stream, unless the library has no algorithm for it.

    Parameters
    ----------
    cupy : module
        CuPy, whose stream and memory pool are used.
    handle : int
        cuBLAS's handle of this thread and device, which cublasLt accepts.
    product : Product
        The product.
    scalars : tuple of int
        Addresses of alpha and beta.
    addresses : tuple of int
        Addresses of A, B, C and D.

    Returns
    -------
    bool
        Whether it was computed.

    Raises
    ------
    RuntimeError
        If the library reports a failure, with the name of its status.
    """
    lt = library()
    plan = None if lt is None else _plan(lt, handle, product)
    if plan is None:
        return False
    size = plan.heuristic.workspace
    work = cupy.empty(size, dtype="uint8") if size else None
    a, b, c, d = addresses
    _, of_a, of_b, of_c, of_d = plan.descriptors
    _call(
        lt,
        "cublasLtMatmul",
        *(handle, plan.descriptors[0], scalars[0], a, of_a, b, of_b, scalars[1], c, of_c, d, of_d),
        *(ctypes.addressof(plan.heuristic), None if work is None else work.data.ptr, size),
        cupy.cuda.get_current_stream().ptr,
    )
    return True


class _Plan:
    """Descriptors of a product and of its four matrices, and an algorithm for it."""

    def __init__(self, lt: Any) -> None:
        self.lt = lt
        self.heuristic = Heuristic()
        self.descriptors: list[int] = []

    def create(self, kind: str, *arguments: int) -> int:
        """Return a new descriptor, which is destroyed with the plan."""
        made = ctypes.c_void_p()
        _call(self.lt, f"cublasLt{kind}Create", ctypes.addressof(made), *arguments)
        # Not at exit of the process, when the library may be unloaded.
        weakref.finalize(
            self, getattr(self.lt, f"cublasLt{kind}Destroy"), made.value
        ).atexit = False
        return made.value or 0

    def set(self, kind: str, descriptor: int, name: str, value: Any) -> None:
        """Set an attribute; the C type of the value is that of the attribute."""
        at, size = ctypes.addressof(value), ctypes.sizeof(value)
        function = f"cublasLt{kind}SetAttribute"
        _call(self.lt, function, descriptor, CONSTANTS[name], at, size)


@functools.lru_cache(maxsize=256)
def _plan(lt: Any, handle: int, product: Product) -> _Plan | None:
    """Return the plan for a product; None without an algorithm. A handle is for one device."""
    plan = _Plan(lt)
    kind, compute, of_scalars = product.types
    head = plan.create("MatmulDesc", compute, of_scalars)
    names = ("TRANSA", "TRANSB", "POINTER_MODE")
    for name, value in zip(names, (*product.operations, product.mode), strict=True):
        plan.set("MatmulDesc", head, f"CUBLASLT_MATMUL_DESC_{name}", ctypes.c_int32(value))
    m, n, k = product.sizes
    shapes = [(k, m) if product.operations[0] else (m, k)]
    shapes += [(n, k) if product.operations[1] else (k, n), (m, n), (m, n)]
    plan.descriptors = [head]
    for shape, leading, step in zip(shapes, product.leading, product.steps, strict=True):
        layout = plan.create("MatrixLayout", kind, *shape, leading)
        matrices, offset = ctypes.c_int32(product.matrices), ctypes.c_int64(step)
        plan.set("MatrixLayout", layout, "CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT", matrices)
        plan.set("MatrixLayout", layout, "CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET", offset)
        plan.descriptors.append(layout)
    preference = plan.create("MatmulPreference")
    # Parts of a sum are added in the compute type, so that a result is rounded once.
    scheme = CONSTANTS["CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE"]
    for name, number in (
        ("CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES", ctypes.c_uint64(WORKSPACE)),
        ("CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK", ctypes.c_uint32(scheme)),
        *zip(ALIGNMENTS, map(ctypes.c_uint32, product.alignments), strict=True),
    ):
        plan.set("MatmulPreference", preference, name, number)
    count = ctypes.c_int(0)
    status = lt.cublasLtMatmulAlgoGetHeuristic(
        *(handle, *plan.descriptors, preference, 1),
        *(ctypes.addressof(plan.heuristic), ctypes.addressof(count)),
    )
    return plan if status == SUCCESS == plan.heuristic.state and count.value else None


def _call(lt: Any, name: str, *arguments: Any) -> None:
    status = getattr(lt, name)(*arguments)
    if status != SUCCESS:
        known = lt.cublasLtGetStatusName(status).decode()
        raise RuntimeError(f"{name} of cuBLAS failed: {known}")
