"""Files: what is read equals what was written, and what cannot be read says why in one line."""

from __future__ import annotations

import concurrent.futures
import decimal
import errno
import io
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import polarlib
from polarlib import files, report
from polarlib.design import cost_tables
from polarlib.files import matrices, matrix_market, whole
from polarlib.files.whole import write_together, write_whole

A = np.random.default_rng(0).standard_normal((5, 3))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failure(path, name=None, kind=ValueError):
    """The message of a file that cannot be read: one line that begins with its name."""
    with pytest.raises(kind) as caught:
        files.read(path, name)
    message = str(caught.value)
    assert message.startswith(str(path).partition(":")[0] + ": ")
    assert "\n" not in message
    return message


# -- what can be read ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "i2", "u1", "?", ">f4", ">c16"])
def test_npy(here, dtype):
    a = (A * 3).astype(dtype)
    np.save("a.npy", a)
    b = files.read("a.npy")
    np.testing.assert_array_equal(b, a)
    assert b.dtype == a.dtype.newbyteorder("=")
    assert b.dtype.isnative
    assert files.names("a.npy") == ()


def test_npy_of_any_order_and_number_of_dimensions(here):
    for a in (np.asfortranarray(A), A[0], np.stack([A, A]), np.zeros((0, 3)), np.array(2.0)):
        np.save("a.npy", a)
        np.testing.assert_array_equal(files.read("a.npy"), a)


def test_npz(here):
    np.savez("two.npz", a=A, b=2 * A)
    np.savez_compressed("one.npz", weight=A)
    assert files.names("two.npz") == ("a", "b")
    np.testing.assert_array_equal(files.read("two.npz", "b"), 2 * A)
    np.testing.assert_array_equal(files.read("two.npz:b"), 2 * A)
    np.testing.assert_array_equal(files.read(here / "two.npz", "a"), A)
    np.testing.assert_array_equal(files.read("one.npz"), A)


def test_a_file_whose_name_has_a_colon(here):
    np.savez("odd.npz", a=A)
    try:
        (here / "odd.npz").rename(here / "odd.npz:b.npz")
    except OSError:
        pytest.skip("the file system has no colons in names")
    np.testing.assert_array_equal(files.read("odd.npz:b.npz"), A)
    np.testing.assert_array_equal(files.read("odd.npz:b.npz", "a"), A)


def test_safetensors(here):
    safetensors = pytest.importorskip("safetensors.numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kinds = ["float64", "float32", "float16", "complex64", "int8", "int64", "uint8", "bool"]
    tensors = {name: (3 * A).astype(name) for name in kinds}
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        tensors[name] = A.astype(getattr(ml_dtypes, name))
    tensors["layers.0.weight:odd"] = A
    tensors["empty"] = np.zeros((0, 4))
    safetensors.save_file(tensors, "model.safetensors", metadata={"format": "np"})
    assert set(files.names("model.safetensors")) == set(tensors)
    for name, tensor in tensors.items():
        a = files.read("model.safetensors", name)
        assert (a.dtype, a.shape) == (tensor.dtype, tensor.shape)
        assert a.tobytes() == tensor.tobytes()
    np.testing.assert_array_equal(files.read("model.safetensors:layers.0.weight:odd"), A)


@pytest.mark.parametrize("dtype", ["f8", "c16", "i8"])
def test_matrix_market(here, dtype):
    dense = np.round(3 * A).astype(dtype)
    sparse = scipy.sparse.coo_array(dense * (dense.real > 0))
    scipy.io.mmwrite("dense.mtx", dense)
    scipy.io.mmwrite("sparse.mtx", sparse)
    np.testing.assert_array_equal(files.read("dense.mtx"), dense)
    np.testing.assert_array_equal(files.read("sparse.mtx"), sparse.toarray())
    assert files.read("sparse.mtx").dtype == dense.dtype


@pytest.mark.parametrize(
    ("dtype", "symmetry"),
    [
        (dtype, symmetry)
        for dtype in ("f8", "c16", "i8", "u8")
        for symmetry in ("general", "symmetric", "skew-symmetric", "hermitian")
        if (dtype, symmetry) != ("u8", "skew-symmetric")
    ],
)
def test_matrix_market_as_scipy_writes_it(here, dtype, symmetry):
    b = np.round(9 * np.random.default_rng(1).standard_normal((2, 4, 4)))
    dense = abs(b[0]).astype(dtype) if dtype != "c16" else b[0] + 1j * b[1]
    mirrored = {"symmetric": dense.T, "skew-symmetric": -dense.T, "hermitian": dense.conj().T}
    dense = dense + mirrored.get(symmetry, 0)
    for matrix in (dense, scipy.sparse.coo_array(dense)):
        scipy.io.mmwrite("a.mtx", matrix, symmetry=symmetry)
        a = files.read("a.mtx")
        assert a.dtype == dense.dtype
        np.testing.assert_array_equal(a, dense)


ARRAY, COORDINATE = (f"%%MatrixMarket matrix {form} " for form in ("array", "coordinate"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ARRAY + "real general\n2 1\n1.0D+01\n-2.5d-03\n", [[10.0], [-0.0025]]),
        (ARRAY + "double general\n1 2\n+.5E1\n 7.\t\n", [[5.0, 7.0]]),
        (ARRAY + "complex general\n1 1\n1D1 -2D-1\n", [[10 - 0.2j]]),
        (ARRAY + "real general\n% c\n\n2 1\r\n1\r\n% c\r\n \r\n2\r\n\r\n", [[1], [2]]),
        (ARRAY + "real skew-symmetric\n3 3\n1\n2\n3", [[0, -1, -2], [1, 0, -3], [2, 3, 0]]),
        (ARRAY + "complex hermitian\n1 1\n-inf 0\n", [[complex(-np.inf, 0)]]),
        (ARRAY + "real general\n1 1\nNaN\n", [[np.nan]]),
        (COORDINATE + "real general\n1 1 3\n1 1 1\n1 1 2\n1 1 .5\n", [[3.5]]),
        (COORDINATE + "integer general\n1 1 2\n1 1 9223372036854775806\n1 1 1\n", [[2**63 - 1]]),
        (COORDINATE + "unsigned-integer general\n1 1 1\n1 1 18446744073709551615\n", [[2**64 - 1]]),
        (
            COORDINATE.upper().replace("%%MATRIXMARKET", "%%MatrixMarket")
            + "REAL General\n1 2 0\n",
            [[0, 0]],
        ),
        (ARRAY + "real general\n0 5\n", np.zeros((0, 5))),
        (COORDINATE + "real general\n3 0 0\n", np.zeros((3, 0))),
        (COORDINATE + "integer symmetric\n0 0 0\n", np.zeros((0, 0))),
    ],
)
def test_matrix_market_by_its_rules(here, text, expected):
    (here / "a.mtx").write_bytes(text.encode())
    np.testing.assert_array_equal(files.read("a.mtx"), expected)


def test_matrix_market_longer_than_one_read(here, monkeypatch):
    monkeypatch.setattr(matrix_market, "_LINES", 3)
    for symmetric in (False, True):
        dense = A @ A.T if symmetric else A
        for matrix in (dense, scipy.sparse.coo_array(dense)):
            scipy.io.mmwrite("a.mtx", matrix, precision=17)
            np.testing.assert_array_equal(files.read("a.mtx"), dense)
    text = (here / "a.mtx").read_text()
    (here / "a.mtx").write_text(text.replace("\n5 4 ", "\n5 4 x"))
    number = text[: text.index("\n5 4 ")].count("\n") + 2
    assert f"line {number}: " in failure("a.mtx")


def test_matrix_market_symmetric_and_pattern(here):
    head = "%%MatrixMarket matrix coordinate "
    (here / "s.mtx").write_text(head + "real symmetric\n2 2 2\n1 1 2.0\n2 1 3.0\n")
    (here / "p.mtx").write_text(head + "pattern general\n2 3 2\n1 1\n2 3\n")
    np.testing.assert_array_equal(files.read("s.mtx"), [[2, 3], [3, 0]])
    np.testing.assert_array_equal(files.read("p.mtx"), [[1, 0, 0], [0, 0, 1]])


# -- what cannot ------------------------------------------------------------------------------


def test_missing_and_not_a_file(here):
    assert "no such file" in failure("a.npy", kind=FileNotFoundError)
    assert "no such file" in failure("a.npz:weight", kind=FileNotFoundError)
    (here / "folder.npy").mkdir()
    assert "folder" in failure("folder.npy", kind=IsADirectoryError)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.mat", "a.pt", "a", ".npy"])
def test_unknown_suffix(here, name):
    np.save("x.npy", A)
    (here / "x.npy").rename(here / name)
    assert ".npy, .npz, .safetensors, .mtx" in failure(name)


def test_wrong_suffix(here):
    np.save("a.npy", A)
    np.savez("b.npz", A)
    (here / "a.npy").rename(here / "c.npz")
    (here / "b.npz").rename(here / "d.npy")
    (here / "e.npy").write_text("1 2\n3 4\n")
    assert "is a .npy file; rename" in failure("c.npz")
    assert "is a .npz file; rename" in failure("d.npy")
    assert "not a .npy file" in failure("e.npy")


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_empty_files(here, suffix):
    path = here / f"a{suffix}"
    path.touch()
    assert "is empty" in failure(path)


def test_damaged_npy(here):
    np.save("a.npy", A)
    whole = (here / "a.npy").read_bytes()
    for length in (6, 7, 9, 20, 127, 130, len(whole) - 1):
        (here / "cut.npy").write_bytes(whole[:length])
        assert "damaged or cut short" in failure("cut.npy")
    for old, new in ((b"<f8", b"<q9"), (b"(5, 3)", b"(5, 3 "), (b"descr", b"\xff\xfecr")):
        (here / "bad.npy").write_bytes(whole.replace(old, new))
        assert "damaged or cut short" in failure("bad.npy")


@pytest.mark.parametrize(
    "shape", [b"(4, 3)", b"(0, 3)", b"(-1,3)", b"(-5,3)", b"(5, 0)", b"(5, 4)"]
)
def test_shapes_that_do_not_fit_the_data(here, shape):
    np.save("a.npy", A)
    data = (here / "a.npy").read_bytes().replace(b"(5, 3)", shape)
    (here / "a.npy").write_bytes(data)
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    if shape.startswith(b"(-") and np.lib.NumpyVersion(np.__version__) < "2.1.0":
        # These versions of NumPy infer a negative length, as reshape does: nothing is lost.
        np.testing.assert_array_equal(files.read("a.npy"), A)
        return
    assert "damaged" in failure("a.npy")
    assert "damaged" in failure("a.npz")


@pytest.mark.parametrize("shape", [(10**9, 10**9), (10**7, 10**7)])
def test_npy_that_claims_to_be_enormous(here, shape):
    head = io.BytesIO()
    facts = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    (here / "huge.npy").write_bytes(head.getvalue() + bytes(80))
    assert "too large" in failure("huge.npy")


def test_damaged_npz(here):
    np.savez_compressed("a.npz", a=np.ones((50, 50)))
    whole = (here / "a.npz").read_bytes()
    (here / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (here / "bad.npz").write_bytes(whole[:70] + bytes(20) + whole[90:])
    assert "damaged or cut short" in failure("cut.npz")
    assert "damaged or cut short" in failure("bad.npz")


def test_members_that_are_no_arrays(here):
    np.save("a.npy", A)
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
        archive.write("a.npy")
    assert files.names("a.npz") == ("a",)
    np.testing.assert_array_equal(files.read("a.npz"), A)
    assert "no array 'readme.txt'" in failure("a.npz:readme.txt")
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("text.npy", "hello")
    assert "damaged" in failure("a.npz")


def test_sparse_matrices_of_scipy_are_named(here):
    scipy.sparse.save_npz("a.npz", scipy.sparse.csr_array(np.eye(3)))
    assert "sparse matrix of scipy.sparse.save_npz" in failure("a.npz")
    np.testing.assert_array_equal(files.read("a.npz:data"), np.ones(3))


def test_archives_that_unpack_to_more_than_the_memory(here, monkeypatch):
    np.savez_compressed("a.npz", a=np.zeros(1000))
    monkeypatch.setattr(matrices, "physical_memory", lambda: 5000.0)
    assert "too large for the memory" in failure("a.npz")


@pytest.mark.parametrize("head", ["%%MatrixMarket", ARRAY, ARRAY + "real general\n2 1\n"])
def test_lines_without_end(here, head):
    (here / "a.mtx").write_bytes(head.encode() + bytes(10**6))
    assert len(failure("a.mtx")) < 500


def test_json_that_is_no_text(here):
    np.save("a.npy", np.eye(2))
    with pytest.raises(ValueError, match=r"^a\.npy: is not JSON: it is not UTF-8 text$"):
        polarlib.Schedule.from_json("a.npy")


DEEP = 10**5


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a": ' * DEEP, "9" * 5000, '{"a": 1, "a": 2}'])
def test_json_that_no_program_of_ours_wrote(here, text):
    (here / "result.json").write_text(text)
    for read, path in ((polarlib.Schedule.from_json, "result.json"), (report.collect, ".")):
        with pytest.raises(ValueError, match=r"^result\.json: is not JSON: ") as caught:
            read(path)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * DEEP,
        "a = " + "9" * 5000,
        "[numpy.cpu]\nmeasured = " + "[" * 200 + "]" * 200,
        "[numpy.cpu]\nmeasured = true\nsource = ''\nsizes = [" + "9" * 400 + "]",
        "a" * 2**21,
    ],
)
def test_costs_that_no_program_of_ours_wrote(here, text):
    (here / "costs.toml").write_text(text)
    with pytest.raises(ValueError, match=r"^costs\.toml: ") as caught:
        cost_tables.read_costs("costs.toml")
    assert len(str(caught.value)) < 300


def test_choice_of_an_array(here):
    np.savez("two.npz", first=A, second=A)
    np.savez("none.npz")
    np.savez("many.npz", **{f"w{i}": A[:1] for i in range(50)})
    np.save("a.npy", A)
    message = failure("two.npz")
    assert "2 arrays" in message
    assert "'first', 'second'" in message
    assert "two.npz:first" in message
    assert "did you mean 'second'" in failure("two.npz", "secnd")
    assert "no arrays" in failure("none.npz")
    assert "and 30 more" in failure("many.npz")
    assert "leave 'x' out" in failure("a.npy", "x")


class Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("a file was unpickled",))


def test_nothing_is_unpickled(here):
    objects = np.array([[Trap()]], dtype=object)
    np.save("object.npy", objects, allow_pickle=True)
    np.savez("object.npz", a=objects)
    (here / "pickle.npy").write_bytes(pickle.dumps(A))
    for name in ("object.npy", "object.npz", "pickle.npy"):
        assert "Python objects" in failure(name)


@pytest.mark.parametrize(
    "array",
    [
        np.array([["a", "b"]]),
        np.array([[b"a"]]),
        np.array([["2020-01-01"]], dtype="M8[D]"),
        np.zeros((2, 2), dtype=[("x", "f8"), ("y", "f8")]),
        np.zeros((2, 2), dtype="V2"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_not_numbers(here, array):
    np.save("a.npy", array)
    assert "not numbers" in failure("a.npy")


def test_damaged_safetensors(here):
    safetensors = pytest.importorskip("safetensors.numpy")
    pytest.importorskip("ml_dtypes")
    safetensors.save_file({"a": A}, "a.safetensors")
    whole = (here / "a.safetensors").read_bytes()
    for length in (3, 20, len(whole) - 1):
        (here / "b.safetensors").write_bytes(whole[:length])
        assert "damaged or cut short" in failure("b.safetensors")
    (here / "b.safetensors").write_bytes(whole.replace(b"F64", b"E64"))
    assert "damaged" in failure("b.safetensors")
    safetensors.save_file({}, "c.safetensors")
    assert "no arrays" in failure("c.safetensors")


@pytest.mark.parametrize("missing", ["safetensors", "ml_dtypes"])
def test_safetensors_without_the_extra(here, monkeypatch, missing):
    (here / "a.safetensors").write_bytes(bytes(20))
    monkeypatch.setitem(sys.modules, missing, None)
    assert "install polarlib[files]" in failure("a.safetensors", kind=ImportError)


def test_damaged_matrix_market(here):
    head = "%%MatrixMarket matrix coordinate real general\n"
    for text in ("3 3 2\n1 1 2.0\n", "3 3\n", "3 3 1\n9 1 2.0\n", "3 3 1\n1 1 x\n", ""):
        (here / "a.mtx").write_text(head + text)
        assert "damaged or cut short" in failure("a.mtx")
    (here / "a.mtx").write_text(head.replace("general", "odd") + "1 1 1\n1 1 1.0\n")
    assert "line 1: " in failure("a.mtx")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        *(
            (ARRAY + f"real general\n1 1\n{token}\n", 3)
            for token in [
                "1,5",
                "2.5abc",
                "1.0e-",
                "1.0e+",
                "1e",
                "1.5.2",
                "1_0",
                "0x10",
                "1 2",
                "--1",
                ".",
                "1;",
                "1+101",
                "١",
                "\x00",
                "1.0Q+01",
            ]
        ),
        *(
            (COORDINATE + f"real general\n2 2 1\n{entry}\n", 3)
            for entry in [
                "1 1 1.0e-",
                "1 1",
                "1",
                "1 1 1 1",
                "1.0 1 1",
                "0 1 1",
                "1 0 1",
                "3 1 1",
                "1 3 1",
                "-1 1 1",
                "9999999999999999999 1 1",
            ]
        ),
        (COORDINATE + "real general\n% c\n2 2 2\n1 1 1\n", 4),
        (COORDINATE + "real general\n2 2 1\n1 1 1\n\n1 2 1\n", 5),
        (ARRAY + "real general\n0 2\n1\n", 3),
        (ARRAY + "real general\n2 2 2\n", 2),
        (ARRAY + "real general\n-1 2\n", 2),
        (ARRAY + "real general\n", 2),
        (COORDINATE + "real symmetric\n2 3 0\n", 2),
        (COORDINATE + "real symmetric\n2 2 1\n1 2 1\n", 3),
        (COORDINATE + "real skew-symmetric\n2 2 1\n1 1 1\n", 3),
        (COORDINATE + "complex hermitian\n2 2 1\n1 1 1 1\n", 3),
        (COORDINATE + "complex general\n2 2 1\n1 1 1\n", 3),
        (COORDINATE + "pattern general\n2 2 1\n1 1 1\n", 3),
        (COORDINATE + "integer general\n2 2 1\n1 1 1.0\n", 3),
        (COORDINATE + "integer general\n2 2 1\n1 1 9223372036854775808\n", 3),
        (COORDINATE + "unsigned-integer general\n2 2 1\n1 1 -1\n", 3),
        (COORDINATE + "pattern hermitian\n1 1 0\n", 1),
        (ARRAY + "pattern general\n1 1\n", 1),
        ("%%MatrixMarket vector array real general\n1\n1\n", 1),
        ("%%MatrixMarket\n", 1),
        ("%%MatrixMarkets matrix array real general\n1 1\n1\n", 1),
        ("%%MatrixMarket", 1),
    ],
)
def test_matrix_market_is_refused_with_the_line(here, text, line):
    (here / "a.mtx").write_bytes(text.encode())
    assert f"line {line}: " in failure("a.mtx")


def test_sums_of_integers_that_do_not_fit(here):
    (here / "a.mtx").write_text(COORDINATE + f"integer general\n1 1 2\n1 1 {2**63 - 1}\n1 1 1\n")
    assert "too large" in failure("a.mtx")


def naive(text: str) -> np.ndarray:
    """A Matrix Market file read entry by entry, in decimal numbers."""
    head, *lines = text.split("\n")
    _, _, form, field, symmetry = head.lower().split()
    lines = [x.split() for x in lines if x.strip() and not x.strip().startswith("%")]
    rows, columns, *_ = map(int, lines.pop(0))
    a = np.zeros((rows, columns), complex)
    diagonal = int(symmetry == "skew-symmetric")
    below = [(i, j) for j in range(columns) for i in range(rows)]
    if symmetry != "general":
        below = [(i, j) for i, j in below if i >= j + diagonal]
    for k, tokens in enumerate(lines):
        i, j = below[k] if form == "array" else (int(tokens.pop(0)) - 1, int(tokens.pop(0)) - 1)
        parts = [float(decimal.Decimal(x.upper().replace("D", "E"))) for x in tokens]
        v = complex(*parts) if parts else 1.0
        a[i, j] += v
        if symmetry != "general" and i != j:
            a[j, i] += {"skew-symmetric": -v, "hermitian": np.conj(v)}.get(symmetry, v)
    return a if field == "complex" else a.real


WHOLE = [
    ARRAY + "real general\n% comment\n2 3\n1.0D+01\n-2.5e-3\n3\n4.25\n0\n.5\n",
    ARRAY + "complex hermitian\n2 2\n1 0\n2 -3.5\n1E2 0\n",
    COORDINATE + "real symmetric\n3 3 3\n1 1 2.0\n3 1 -1.5\n\n3 3 1e1\n",
    COORDINATE + "integer skew-symmetric\r\n3 3 2\r\n2 1 20\r\n3 2 -7\r\n",
    COORDINATE + "pattern general\n4 2 3\n1 1\n4 2\n4 2\n",
]
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.integers(0, 3), st.text("0123456789.,-+eEdD %\n\r\tabx\x00", max_size=3)
    ),
    max_size=4,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(whole=st.sampled_from(WHOLE), edits=EDITS, cut=st.one_of(st.none(), st.floats(0, 1)))
def test_mutated_matrix_market_is_refused_or_read_as_it_says(here, whole, edits, cut):
    body = whole[14:]  # the beginning is checked before
    for place, removed, inserted in edits:
        at = int(place * len(body))
        body = body[:at] + inserted + body[at + removed :]
    body = body if cut is None else body[: int(cut * len(body))]
    text = whole[:14] + body
    (here / "a.mtx").write_bytes(text.encode())
    try:
        a, message = files.read("a.mtx"), ""
    except ValueError as error:
        a, message = None, str(error)
    if message:
        assert re.match(r"a\.mtx: .*(line \d+: |GiB)", message)
    else:
        np.testing.assert_array_equal(a, naive(text))


def test_large_sparse_matrices_are_not_made_dense(here):
    text = "%%MatrixMarket matrix coordinate {} general\n{} {} 1\n1 1 {}\n"
    (here / "a.mtx").write_text(text.format("real", 10**6, 10**6, "1.0"))
    assert "GiB" in failure("a.mtx")
    side = int(
        (matrix_market.DENSE_LIMIT / 8) ** 0.5
    )  # real: just allowed, complex: twice too large
    (here / "a.mtx").write_text(text.format("complex", side, side, "1.0 0.0"))
    assert "GiB" in failure("a.mtx")


# -- writing ----------------------------------------------------------------------------------


def test_write_npy(here):
    files.write_npy("a.npy", A)
    np.testing.assert_array_equal(np.load("a.npy"), A)
    files.write_npy(here / "a.npy", [[1, 2]])
    np.testing.assert_array_equal(np.load("a.npy"), [[1, 2]])
    assert [path.name for path in here.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_formats_that_npy_lacks_become_float32(here, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = A.astype(getattr(ml_dtypes, name))
    files.write_npy("a.npy", a)
    b = np.load("a.npy")
    assert b.dtype == np.float32
    np.testing.assert_array_equal(b.astype(a.dtype), a)


def test_a_file_that_cannot_be_written_is_left_as_it_was(here, monkeypatch):
    files.write_npy("a.npy", A)
    before = (here / "a.npy").read_bytes()
    with pytest.raises(ValueError, match=r"a\.npy: .* not numbers"):
        files.write_npy("a.npy", np.array([None]))

    def full(file, array, **rest):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space"):
        files.write_npy("a.npy", 2 * A)
    assert (here / "a.npy").read_bytes() == before
    assert [path.name for path in here.iterdir()] == ["a.npy"]
    with pytest.raises(FileNotFoundError):
        files.write_npy("nowhere/a.npy", A)


LIBRARIES = {
    "torch": "x.clone()",
    "torch bfloat16": "x.bfloat16()",
    "torch float16": "x.half()",
    "torch float8": "x.to(lib.float8_e4m3fn)",
    "torch gradient": "x.clone().requires_grad_()",
    "torch conjugate": "(x * 1j).mH",
    "torch integers": "x.long()",
    "jax": "x",
    "jax bfloat16": "x.astype('bfloat16')",
    "dask": "x",
    "array_api_strict": "x",
}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_write_npy_of_other_libraries(here, kind):
    name, _, what = kind.partition(" ")
    lib = pytest.importorskip({"jax": "jax.numpy", "dask": "dask.array"}.get(name, name))
    dense = np.round(A).astype(np.float32)
    array = eval(LIBRARIES[kind], {"x": lib.asarray(dense), "lib": lib})
    files.write_npy("a.npy", array)
    a = np.load("a.npy")
    expected = {"conjugate": (dense * 1j).conj().T}.get(what, dense)
    np.testing.assert_array_equal(a, expected)
    dtypes = {"float16": "float16", "conjugate": "complex64", "integers": "int64"}
    assert a.dtype == dtypes.get(what, "float32")


def test_write_npy_refuses_what_is_no_array_of_numbers(here):
    masked = np.ma.masked_array(A, A > 0)
    for array in (masked, scipy.sparse.eye_array(3), [[1], [2, 3]], ["a"], None):
        with pytest.raises(ValueError, match=r"^a\.npy: "):
            files.write_npy("a.npy", array)
    assert not list(here.iterdir())


# -- whole files ------------------------------------------------------------------------------


def put(text):
    return lambda file: file.write(text.encode())


def left(folder):
    """Names and texts of the files in a folder."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_open_or_of_the_file_that_is_replaced(here, monkeypatch):
    before = os.umask(0o027)
    try:
        (here / "a").write_text("opened")
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the process's"))
            write_whole("b", put("new"))
        assert os.stat("a").st_mode == os.stat("b").st_mode
        for mode in (0o600, 0o644, 0o755):
            os.chmod("b", mode)
            write_whole("b", put("again"))
            assert stat.S_IMODE(os.stat("b").st_mode) == mode
    finally:
        os.umask(before)
    assert left(here) == {"a": "opened", "b": "again"}


def test_files_that_may_not_be_written_are_not_replaced(here, monkeypatch):
    (here / "a").write_text("old")
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: not str(p).endswith("a") and access(p, mode))
    with pytest.raises(PermissionError, match="'a'"):
        write_whole("a", put("new"))
    assert left(here) == {"a": "old"}


def test_links_are_followed(here):
    (here / "folder").mkdir()
    (here / "folder" / "a").write_text("old")
    try:
        (here / "link").symlink_to("folder/a")
    except OSError:
        pytest.skip("no links")
    (here / "new").symlink_to("folder/b")
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("nowhere/b")
    write_whole("link", put("new"))
    write_whole("new", put("new"))
    assert (here / "link").is_symlink()
    assert left(here / "folder") == {"a": "new", "b": "new"}
    with pytest.raises(OSError, match="'loop'"):
        write_whole("loop", put("new"))
    with pytest.raises(FileNotFoundError, match=r"dangling: there is no folder .*nowhere"):
        write_whole("dangling", put("new"))


def test_names_as_long_as_allowed(here):
    name = "n" * 255
    write_whole(name, put("new"))
    assert left(here) == {name: "new"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_pipes_devices_and_folders_are_refused(here):
    os.mkfifo("pipe.npy")
    (here / "zero.npy").symlink_to("/dev/zero")
    (here / "folder.npy").mkdir()
    for name in ("pipe.npy", "zero.npy", "folder.npy"):
        with pytest.raises(OSError, match=f"{name}: is a "):
            write_whole(name, put("new"))
        for read in (files.read, polarlib.Schedule.from_json, cost_tables.read_costs):
            with pytest.raises(OSError, match=f"{name}: is a "):
                read(name)
    (here / "study").mkdir()
    (here / "study" / "result.json").symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"result\.json: is a pipe, a socket or a device"):
        report.collect("study")


def test_a_full_disk_leaves_the_file_as_it_was(here):
    resource = pytest.importorskip("resource")
    files.write_npy("a.npy", A)
    before = (here / "a.npy").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(OSError, match=r"'a\.npy'") as caught:
            files.write_npy("a.npy", np.zeros(2**16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert (here / "a.npy").read_bytes() == before
    assert [path.name for path in here.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("old", [{}, {"u": "old u"}, {"h": "old h"}, {"u": "old u", "h": "old h"}])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_several_files_are_written_all_or_none(here, monkeypatch, old, links, error):
    for name, text in old.items():
        (here / name).write_text(text)
    replace, renamed = os.replace, []

    def fails(source, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise error
        replace(source, target)

    def no_links(source, target):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(type(error)):
        write_together({"u": put("new u"), "h": put("new h")})
    assert left(here) == old
    write_together({"u": put("new u"), "h": put("new h")})
    assert left(here) == {"u": "new u", "h": "new h"}


@pytest.mark.parametrize("names", ["u", "uh"])
def test_an_interruption_after_the_last_file_is_in_place(here, monkeypatch, names):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "_sync_folder", interrupted)
    for text in ("first", "second"):
        with pytest.raises(KeyboardInterrupt):
            write_together({name: put(text) for name in names})
        assert left(here) == dict.fromkeys(names, text)


def test_several_files_of_which_one_fails(here):
    (here / "u").write_text("old")
    for wrong in ("nowhere/h", "."):
        with pytest.raises(OSError, match=r"nowhere|folder"):
            write_together({"u": put("new"), wrong: put("new")})
    assert left(here) == {"u": "old"}


SIGNALS = ["SIGTERM", "SIGHUP"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", SIGNALS)
def test_signals_end_the_process_without_leaving_temporary_files(here, name):
    (here / "a").write_text("old")
    # Without the package, whose import takes longer than all else here.
    code = f"""
import os, runpy, signal
signal.signal(signal.{name}, signal.SIG_DFL)  # what runs the tests may have it ignored
def write(file):
    file.write(b"new")
    os.kill(os.getpid(), signal.{name})
    raise SystemExit(3)
runpy.run_path({whole.__file__!r})["write_whole"]("a", write)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (-getattr(signal, name), b"")
    assert left(here) == {"a": "old"}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_handlers_of_signals_are_left_as_they_were(here):
    def during():
        found = []
        write_whole("a", lambda file: found.append(signal.getsignal(signal.SIGTERM)))
        return found[0]

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert callable(during())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(during).result() is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert during() is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# -- bundled matrices -------------------------------------------------------------------------


def test_sample_matrices():
    matrices, metadata = files.sample_matrices(), files.sample_metadata()
    assert list(matrices) == list(metadata)
    data = resources.files("polarlib").joinpath("data")
    facts = tomllib.loads(data.joinpath("gradients.toml").read_text(encoding="utf-8"))["matrix"]
    with data.joinpath("gradients.npz").open("rb") as stream, np.load(stream) as stored:
        for fact in facts:
            a, known = matrices[fact["name"]], metadata[fact["name"]]
            assert a.dtype == np.float32
            assert list(a.shape) == known["shape"] == fact["shape"]
            assert known["description"] == fact["description"]
            assert known["licence"]
            assert known["attribution"]
            expected = stored[fact["name"]].astype(np.float64) * fact["scale"]
            np.testing.assert_array_equal(a, expected)


def test_sample_matrices_are_the_callers_own():
    name = next(iter(files.sample_metadata()))
    files.sample_matrices()[name][...] = 0
    files.sample_metadata()[name]["description"] = ""
    assert files.sample_matrices()[name].any()
    assert files.sample_metadata()[name]["description"]


def test_former_names():
    """Until 0.3."""
    with pytest.warns(DeprecationWarning, match=r"shipped is now files\.sample_matrices;"):
        matrices = files.shipped()
    assert all((a == matrices[name]).all() for name, a in files.sample_matrices().items())
    with pytest.warns(DeprecationWarning, match=r"stories is now .*metadata; .*ends with polarlib"):
        stories = files.stories()
    for name, known in files.sample_metadata().items():
        assert stories[name] == known | {"story": known["description"]}
    assert not {"shipped", "stories"} & set(dir(files))
