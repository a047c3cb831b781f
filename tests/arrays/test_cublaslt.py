"""Addends in other storage, by cublasLt, against an emulation of it on raw addresses."""

import ctypes
import gc
import itertools
import re
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from standin import cublas as emulated
from standin import cupy_standin
from test_cublas import DTYPES, STACKS, VIEWS, adjoint, entries, expected, owner

from polarlib.arrays import cublas, cublaslt


@pytest.fixture
def cupy():
    with cupy_standin.installed() as module:
        cublaslt._plan.cache_clear()
        yield module


def used():
    """What was launched: products and copies."""
    names = [call.name for call in cupy_standin.calls()]
    return [name for name in names if name.startswith("cublas") or name in ("setitem", "copy")]


ONE = ["cublasLt.matmul"]
IN_PLACE = ["setitem", "cublas.gemmEx"]


@pytest.mark.parametrize("stacks", STACKS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_type_operation_and_stack(cupy, dtype, stacks):
    """Exact entries: any right order of summation gives the same bits, rounded once."""
    m, k, n = 5, 4, 7
    batch = np.broadcast_shapes(*stacks)
    is_complex = np.dtype(dtype).kind == "c"
    scalars = [(-0.5, 1.5), (0.0, 1.0)] + [(1 - 0.5j, 0.5j)] * is_complex
    for adjoint_a, adjoint_b, (alpha, beta) in itertools.product((0, 1), (0, 1), scalars):
        a = entries((*stacks[0], k, m) if adjoint_a else (*stacks[0], m, k), dtype, 1)
        b = entries((*stacks[1], n, k) if adjoint_b else (*stacks[1], k, n), dtype, 2)
        c = entries((*batch, m, n), dtype, 3)
        op_a, op_b = adjoint(a) if adjoint_a else a, adjoint(b) if adjoint_b else b
        addend, out = cupy.asarray(c), cupy.full(c.shape, np.nan, dtype=dtype)
        how = {"adjoint_a": bool(adjoint_a), "adjoint_b": bool(adjoint_b), "addend": addend}
        cupy_standin.reset()
        with cupy_standin.no_sync():
            got = cublas.gemm(cupy.asarray(a), cupy.asarray(b), out, alpha=alpha, beta=beta, **how)
        assert got is out
        np.testing.assert_array_equal(out.get(), expected(op_a, op_b, c, alpha, beta, dtype))
        np.testing.assert_array_equal(addend.get(), c)
        assert used() == ONE


@pytest.mark.parametrize("stack", [(), (4,), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "c8", ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("view", VIEWS)
def test_views(cupy, view, dtype, stack):
    """As any of the operands, the addend, and the result; what lies around is not touched."""
    if not stack and view in ("stack backwards", "axes swapped"):
        stack = (1,)
    make = VIEWS[view]
    a, b, c = (
        entries((*stack, *shape), dtype, i) for i, shape in enumerate([(6, 4), (4, 5), (6, 5)])
    )
    want = expected(a, b, c, 0.5, -1.0, dtype)
    for which in ("a", "b", "c", "out", "c and out"):
        hosts = {"a": a, "b": b, "c": c, "out": np.zeros_like(c)}
        arrays = {key: cupy.asarray(value) for key, value in hosts.items()}
        owners = {}
        for name in which.split(" and "):
            host = make(hosts[name])
            owners[name] = host, owner(host), owner(host).copy()
            arrays[name] = cupy_standin.to_device(host)  # asarray would lose the strides
        out = arrays["out"]
        how = {"alpha": 0.5, "beta": -1.0, "addend": arrays["c"]}
        assert cublas.gemm(arrays["a"], arrays["b"], out, **how) is out
        np.testing.assert_array_equal(out.get(), want)
        for name, (host, whole, before) in owners.items():
            if name == "out":
                host[...] = 0
            np.testing.assert_array_equal(whole, before)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "c8", ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_matrices_by_columns_are_not_copied(cupy, dtype, turned):
    c = entries((3, 6, 5), dtype, 3)
    a, b = cupy.asarray(entries((3, 6, 4), dtype, 1)), cupy.asarray(entries((3, 4, 5), dtype, 2))
    make = VIEWS["transposed"] if turned else np.copy
    addend, out = (cupy_standin.to_device(make(x)) for x in (c, np.zeros_like(c)))
    cupy_standin.reset()
    cublas.gemm(a, b, out, beta=1.0, addend=addend)
    assert used() == ONE
    np.testing.assert_array_equal(out.get(), expected(a.get(), b.get(), c, 1.0, 1.0, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("which", ["alpha", "beta", "both"])
def test_scalars_on_the_device(cupy, dtype, which):
    a, b, c = (entries((2, 4, 4), dtype, i) for i in range(3))
    given = {"alpha": 0.375, "beta": -1.25}
    for name in given:
        if which in (name, "both"):
            given[name] = cupy.full((1, 1), given[name], dtype="f8" if dtype == "f8" else "f4")
    out, addend = cupy.empty(c.shape, dtype), cupy.asarray(c)
    cupy_standin.reset()
    with cupy_standin.no_sync():
        cublas.gemm(cupy.asarray(a), cupy.asarray(b), out, **given, addend=addend)
    np.testing.assert_array_equal(out.get(), expected(a, b, c, 0.375, -1.25, dtype))
    assert [name for name in used() if name.startswith("cublas")] == ONE


def test_tf32(cupy):
    x = cupy.asarray(np.full((2, 2), 1 + 2.0**-11, "f4"))
    zero = cupy.zeros((2, 2), "f4")
    exact = cublas.gemm(x, x, beta=1.0, addend=zero)
    rounded = cublas.gemm(x, x, beta=1.0, addend=zero, tf32=True)
    np.testing.assert_array_equal(exact.get(), x.get() @ x.get())
    np.testing.assert_array_equal(rounded.get(), np.full((2, 2), 2.0, "f4"))
    assert [name for name in used() if name.startswith("cublas")] == ONE * 2


def test_an_operand_may_be_the_addend(cupy):
    x = entries((4, 4), "f4")
    on_device = cupy.asarray(x)
    y = cublas.gemm(on_device, on_device, alpha=0.5, beta=2.0, addend=on_device)
    np.testing.assert_array_equal(y.get(), 0.5 * x @ x + 2 * x)


def test_addends_that_cublaslt_cannot_take_are_copied(cupy, monkeypatch):
    a, b, c = (entries((3, 4, 4), "f4", i) for i in range(3))
    x, y, z = map(cupy.asarray, (a, b, c))
    want = a @ b + c
    for addend, result in (
        (z[:1], a @ b + c[:1]),  # broadcast
        (z.astype("f8"), want),
        (cupy_standin.to_device(VIEWS["transposed"](c)), want),  # lies otherwise than the result
        (cupy_standin.to_device(VIEWS["every other column"](c)), want),
    ):
        out = cupy.empty((3, 4, 4), "f4")
        cupy_standin.reset()
        cublas.gemm(x, y, out, beta=1.0, addend=addend)
        assert used() == ["setitem", "cublas.gemmStridedBatchedEx"]
        np.testing.assert_array_equal(out.get(), result)
    monkeypatch.setattr(cublas, "STACK", 2)
    cupy_standin.reset()
    got = cublas.gemm(x, y, beta=1.0, addend=z)
    assert used() == ["setitem", *["cublas.gemmStridedBatchedEx"] * 2]
    np.testing.assert_array_equal(got.get(), want)


@pytest.mark.parametrize("missing", ["library", "algorithm"])
def test_without_it(cupy, monkeypatch, missing):
    if missing == "library":
        monkeypatch.setattr(cublaslt, "library", lambda: None)
    else:
        monkeypatch.setattr(cublaslt.library(), "has_algorithms", False)
    a, b, c = (entries((4, 4), "f4", i) for i in range(3))
    x, y, z = map(cupy.asarray, (a, b, c))
    got = cublas.gemm(x, y, alpha=2.0, beta=-1.0, addend=z)
    assert used() == IN_PLACE
    np.testing.assert_array_equal(got.get(), 2 * a @ b - c)
    np.testing.assert_array_equal(z.get(), c)


@pytest.mark.parametrize("name", ["cublasLtMatmul", "cublasLtMatrixLayoutCreate"])
def test_a_library_without_one_of_its_names(monkeypatch, name):
    class Loaded:
        def __getattr__(self, asked):
            if asked == name:
                raise AttributeError(name)
            return type("function", (), {})

    monkeypatch.setattr(ctypes, "CDLL", lambda path: Loaded())
    found = type("found", (), {"abs_path": "library"})
    pathfinder = type("pathfinder", (), {"load_nvidia_dynamic_lib": lambda name: found})
    monkeypatch.setattr(cublaslt, "import_library", lambda name: pathfinder)
    assert cublaslt.library.__wrapped__() is None


def test_an_addend_where_nothing_is_multiplied(cupy, monkeypatch):
    a, b, c = (cupy.asarray(entries((2, 2), "f4", i)) for i in range(3))
    got = cublas.gemm(a[:, :0], b[:0], beta=2.0, addend=c)  # an empty sum
    np.testing.assert_array_equal(got.get(), 2 * c.get())
    monkeypatch.setattr(cublas, "_binding", lambda: None)
    got = cublas.gemm(a, b, beta=2.0, addend=c)
    np.testing.assert_array_equal(got.get(), a.get() @ b.get() + 2 * c.get())
    assert set(used()) == {"setitem"}


def test_algorithms_are_found_once(cupy):
    lt = cublaslt.library()
    x, y = (cupy.asarray(entries((3, 8, 8), "f4", i)) for i in range(2))
    stack = cupy.empty((3, 8, 8), "f4")
    for beta in (1.0, 2.0, 0.5):
        cublas.gemm(x, y, stack, beta=beta, addend=x)
        cublas.gemm(x[0], y[0], stack[1], beta=beta, addend=y[1])
    assert lt.heuristics == 2
    # Another alignment, leading dimension, operation, step, pointer mode, type.
    part, column = x[:, :4, :4], cupy_standin.to_device(VIEWS["transposed"](x.get()))
    for left, right, addend, beta in (
        (x[0].ravel()[1:50].reshape(7, 7), *[x[0].ravel()[:49].reshape(7, 7)] * 2, 1.0),
        (part, part, part, 1.0),
        (column, y, x, 1.0),
        (x[::2], y[:2], x[:2], 1.0),
        (x, y, x, cupy.ones((), "f4")),
        (x.astype("f2"), y.astype("f2"), x.astype("f2"), 1.0),
    ):
        before, out = lt.heuristics, cupy.empty(addend.shape, addend.dtype)
        for _ in range(2):
            got = cublas.gemm(left, right, out, beta=beta, addend=addend)
            want = left.get() @ right.get() + addend.get()
            np.testing.assert_array_equal(got.get(), want)
        assert lt.heuristics == before + 1
    alive = len(lt.descriptors)
    assert alive == 8 * 6
    cublaslt._plan.cache_clear()
    gc.collect()
    assert not lt.descriptors


def test_a_failure_has_its_name(cupy, monkeypatch):
    x = cupy.ones((2, 2), dtype="f4")
    monkeypatch.setattr(cublaslt.library(), "cublasLtMatmul", lambda *args: 15)
    with pytest.raises(RuntimeError, match=r"cublasLtMatmul .*: CUBLAS_STATUS_NOT_SUPPORTED"):
        cublas.gemm(x, x, beta=1.0, addend=x)


def test_the_emulation_sees_wrong_plans(cupy, monkeypatch):
    """A key without one of the properties that an algorithm depends on would be found out."""
    plans, whole = {}, cublaslt._plan

    def careless(lt, handle, product):
        return plans.setdefault(product.sizes, whole(lt, handle, product))

    monkeypatch.setattr(cublaslt, "_plan", careless)
    x = cupy.asarray(entries((65,), "f4"))
    even, odd = x[:64].reshape(8, 8), x[1:].reshape(8, 8)
    cublas.gemm(even, even, beta=1.0, addend=even)
    with pytest.raises(emulated.CUBLASError, match="less aligned"):
        cublas.gemm(odd, even, beta=1.0, addend=even)


# With the wheels of CUDA installed, and without a GPU


def header(name):
    """The text of a header of the wheels, or a skip."""
    folder = pytest.importorskip("nvidia").__path__[0]
    for path in Path(folder).glob(f"*/include/{name}"):
        return path.read_text(encoding="utf-8", errors="replace")
    pytest.skip(f"{name} is not installed")


def test_constants_are_those_of_the_headers():
    text = header("cublasLt.h") + header("cublas_api.h")
    found = {name: int(x) for name, x in re.findall(r"\b(CUBLAS\w+) = (\d+),", text)}
    assert {name: found.get(name) for name in cublaslt.CONSTANTS} == cublaslt.CONSTANTS


# C's types in the header, and ctypes' for them; pointers and handles are addresses.
C_TYPES = {
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
    "cudaDataType": ctypes.c_int,
    "cudaDataType_t": ctypes.c_int,
    "cublasComputeType_t": ctypes.c_int,
}


@pytest.mark.parametrize("name", cublaslt.FUNCTIONS)
def test_arguments_are_those_of_the_header(name):
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header("cublasLt.h"), flags=re.DOTALL)
    declared = re.search(rf"cublasStatus_t CUBLASWINAPI {name}\(([^)]*)\);", text).group(1)
    kinds = []
    for parameter in declared.split(","):
        kind = parameter.strip().removeprefix("const ").partition(" ")[0]
        is_pointer = "*" in parameter or "[" in parameter
        number = ctypes.c_int if kind.endswith(("Attributes_t", "Attribute_t")) else None
        pointed = ctypes.c_void_p
        kinds.append(pointed if is_pointer else number or C_TYPES.get(kind, pointed))
    assert tuple(kinds) == cublaslt.FUNCTIONS[name]


def test_the_structure_is_that_of_the_header():
    text = header("cublasLt.h")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    body = re.search(r"struct \{([^}]*)\} cublasLtMatmulHeuristicResult_t", text).group(1)
    assert re.findall(r"(\w+) \w+(\[\d\])?;", body) == [
        ("cublasLtMatmulAlgo_t", ""),
        ("size_t", ""),
        ("cublasStatus_t", ""),
        ("float", ""),
        ("int", "[4]"),
    ]
    assert re.search(r"uint64_t data\[8\];\s*\} cublasLtMatmulAlgo_t", text)
    assert ctypes.sizeof(cublaslt.Heuristic) == 96


def test_the_real_library_takes_our_descriptors():
    """Descriptors need no driver: sizes of attributes are checked, and a failure is named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy looks for CUDA, and says that there is none
        pytest.importorskip("cupy")
    lt = cublaslt.library()
    if lt is None:
        pytest.skip("cublasLt is not installed")
    product = cublaslt.Product(
        (1, 0), (64, 32, 16), (14, 68, 0), (16, 16, 64, 64), (0,) * 4, 1, 0, (256,) * 4
    )
    plan = cublaslt._Plan(lt)
    head = plan.create("MatmulDesc", 68, 0)
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_INVALID_VALUE"):
        plan.set("MatmulDesc", head, "CUBLASLT_MATMUL_DESC_TRANSA", ctypes.c_int64(1))
    # Every attribute is set before an algorithm is looked for, which there is none without a GPU.
    assert cublaslt._plan.__wrapped__(lt, 0, product) is None
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_NOT_INITIALIZED"):
        cublaslt._call(lt, "cublasLtMatmul", *(None,) * 14, 0, None)
