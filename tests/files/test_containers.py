"""HDF5 files and folders of Zarr: read, written whole or not at all, refused in one line."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from polarlib import files
from polarlib.files import containers, matrices

A = np.random.default_rng(0).standard_normal((5, 3))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr")


def failure(call, *args, kind=ValueError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.h5", "a.hdf5", "a.zarr", "a.npy"])
@pytest.mark.parametrize("dtype", ["f8", "f2", "c16", "i4", ">f4"])
def test_what_is_written_is_read(here, name, dtype):
    package = {"zarr": "zarr", "npy": "numpy"}.get(name.partition(".")[2], "h5py")
    pytest.importorskip(package)
    a = (A * 3).astype(dtype)
    files.write(name, a)
    b = files.read(name)
    np.testing.assert_array_equal(a, b)
    assert b.dtype == np.dtype(dtype).newbyteorder("=")
    assert [path.name for path in here.iterdir()] == [name]


def test_arrays_are_chosen_by_their_path(h5py):
    with h5py.File("a.h5", "w") as f:
        f["x"] = A
        f["group/y"] = 2 * A
        f["link"] = h5py.ExternalLink("other.h5", "/x")
    assert files.names("a.h5") == ("/group/y", "/x")
    for name in ("/group/y", "group/y"):
        np.testing.assert_array_equal(files.read(f"a.h5:{name}"), 2 * A)
        np.testing.assert_array_equal(files.read("a.h5", name), 2 * A)
    message = failure(files.read, "a.h5")
    assert message == (
        "a.h5: holds 2 arrays; choose one, as in a.h5:/group/y (known: '/group/y', '/x')"
    )
    assert "holds no array '/z'" in failure(files.read, "a.h5:/z")


def test_groups_of_zarr(zarr):
    group = zarr.open_group("a.zarr", mode="w")
    group.create_array("x", data=A)
    group.create_array("inner/y", data=2 * A)
    assert files.names("a.zarr") == ("/inner/y", "/x")
    np.testing.assert_array_equal(files.read("a.zarr:/inner/y"), 2 * A)
    assert "choose one" in failure(files.read, "a.zarr")
    zarr.open_group("b.zarr", mode="w")
    assert failure(files.read, "b.zarr") == "b.zarr: holds no arrays"


def test_damaged_files_and_files_of_another_type(h5py, zarr, here):
    files.write("a.h5", A)
    whole = (here / "a.h5").read_bytes()
    (here / "b.h5").write_bytes(whole[:900])
    assert "b.h5: the .h5 file is damaged or cut short" in failure(files.read, "b.h5")
    (here / "c.h5").write_bytes(b"no such file")
    assert "this is not a .h5 file" in failure(files.read, "c.h5")
    (here / "d.npy").write_bytes(whole)
    assert failure(files.read, "d.npy") == "d.npy: this is a .h5 file; rename it to *.h5"
    (here / "e.zarr").mkdir()
    assert "e.zarr: the .zarr file is damaged" in failure(files.read, "e.zarr")
    assert "no such file" in failure(files.read, "f.h5", kind=FileNotFoundError)
    assert "no such file" in failure(files.read, "f.zarr", kind=FileNotFoundError)


def test_what_is_not_read(h5py, monkeypatch):
    with h5py.File("a.h5", "w") as f:
        f["text"] = ["a", "b"]
        f.create_dataset("large", (10**6, 10**6), "f8", chunks=True)  # of no chunk
        f.create_dataset("apart", (2, 2), "f8", external=[("secret", 0, 32)])
        layout = h5py.VirtualLayout((2, 2), "f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", (2, 2))
        f.create_virtual_dataset("virtual", layout)
        f.create_group("group")
    assert "not numbers" in failure(files.read, "a.h5:/text")
    assert "too large for the memory" in failure(files.read, "a.h5:/large")
    for name in ("apart", "virtual"):
        assert "is stored in other files" in failure(files.read, f"a.h5:/{name}")
    assert "holds no array '/group'" in failure(files.read, "a.h5:/group")


def test_files_are_written_whole_or_not_at_all(h5py, zarr, here, monkeypatch):
    files.write("a.h5", A)
    before = (here / "a.h5").read_bytes()
    assert "not numbers" in failure(files.write, "a.h5", np.array(["text"]))
    assert "must end in" in failure(files.write, "a.txt", A)
    assert "there is no folder" in failure(files.write, "no/a.zarr", A, kind=FileNotFoundError)
    files.write("a.zarr", A)
    assert "exists already" in failure(files.write, "a.zarr", A, kind=FileExistsError)

    def full(path, array):
        (here / path).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr, "save_array", full)
    failure(files.write, "b.zarr", A, kind=OSError)
    assert sorted(path.name for path in here.iterdir()) == ["a.h5", "a.zarr"]
    assert (here / "a.h5").read_bytes() == before


@pytest.mark.parametrize(("name", "package"), [("a.h5", "h5py"), ("a.zarr", "zarr")])
def test_the_missing_extra_is_named(here, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = f"{name}: writing needs {package}; install polarlib[files]"
    assert failure(files.write, name, A, kind=ImportError) == message
    if name.endswith("zarr"):
        (here / name).mkdir()
    else:
        (here / name).write_bytes(matrices.MAGIC[".h5"])
    message = f"{name}: reading needs {package}; install polarlib[files]"
    for call in (files.read, files.names):
        assert failure(call, name, kind=ImportError) == message
    assert containers.HDF5 == (".h5", ".hdf5")
