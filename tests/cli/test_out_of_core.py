"""polarlib polar --memory: the factors, the bound, killed runs, and what is refused."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import re
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from shell import PLAIN, document, done, invoke, refused

import polarlib
from polarlib import files
from polarlib.arrays import memory
from polarlib.cli import out_of_core, progress
from polarlib.files import blocks
from polarlib.files.whole import unfinished

pytest.importorskip("dask.array")
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
RNG = np.random.default_rng(0)
A = RNG.standard_normal((400, 6))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of at most two kilobytes, so that small matrices have several."""
    monkeypatch.setattr(out_of_core, "LARGEST_BLOCK", 2048)


def left(here):
    return sorted(path.name for path in here.iterdir())


def save(name, a):
    """Write a matrix so that the name tells how: C or Fortran order, with chunks or without."""
    if name == "fortran.npy":
        np.save(name, np.asfortranarray(a))
    elif name == "chunks.h5":
        with pytest.importorskip("h5py").File(name, "w") as file:
            file.create_dataset("x", data=a, chunks=(5, 4), compression="gzip")
    elif name == "chunks.zarr":
        zarr = pytest.importorskip("zarr")
        zarr.create_array(name, shape=a.shape, dtype=a.dtype, chunks=(90, 4))[...] = a
    else:
        pytest.importorskip({".npy": "numpy", ".h5": "h5py"}[name[name.index(".") :]])
        files.write(name, a)


# -- the factors -----------------------------------------------------------------------------

NAMES = ("a.npy", "fortran.npy", "a.h5", "chunks.h5", "chunks.zarr")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "c8"])
@pytest.mark.thinned(2)
def test_factors(small_blocks, name, wide, dtype):
    a = (A + 1j * A[::-1]).astype(dtype) if dtype == "c8" else A
    a = np.ascontiguousarray(a.T) if wide else a
    save(name, a)
    text = done("polar", name, "-o", "U.npy", "--hermitian", "H.npy", "--memory", "1GB")
    assert int(re.search(r"blocks +(\d+) of", text)[1]) > 5
    u, h = np.load("U.npy"), np.load("H.npy")
    side = "left" if wide else "right"
    expected = polarlib.polar(a.astype("c16" if dtype == "c8" else "f8"), side=side)
    atol = 40 * np.finfo(u.dtype).eps
    assert u.dtype == h.dtype == np.dtype(dtype)
    np.testing.assert_allclose(u, expected.unitary, rtol=0, atol=atol)
    np.testing.assert_allclose(h, expected.hermitian, rtol=0, atol=atol * abs(h).max())
    assert f"A = {'H U' if wide else 'U H'}" in text


@pytest.mark.parametrize("output", ["U.npy", "U.h5", "U.zarr"])
@pytest.mark.parametrize("wide", [False, True])
def test_outputs(here, small_blocks, output, wide):
    pytest.importorskip({"npy": "numpy", "h5": "h5py", "zarr": "zarr"}[output.partition(".")[2]])
    a = A.T if wide else A
    np.save("a.npy", a)
    found = document("polar", "a.npy", "-o", output, "--hermitian", "H.npy", "--memory", "1GB")
    expected = polarlib.polar(a, side="left" if wide else "right")
    np.testing.assert_allclose(files.read(output), expected.unitary, atol=1e-14)
    assert left(here) == sorted(["H.npy", output, "a.npy"])
    assert found["shape"] == list(a.shape)
    assert found["unitary_file"] == output
    assert found["side"] == ("left" if wide else "right")
    assert found["rank"] == 6


@pytest.mark.parametrize("dtype", ["f2", ">f4", "i4", "?"])
def test_dtypes(small_blocks, dtype):
    a = A > 0 if dtype == "?" else (3 * A).astype(dtype)
    np.save("a.npy", a)
    found = document("polar", "a.npy", "-o", "U.npy", "--memory", "1GB")
    kind = "float64" if dtype in ("i4", "?") else "float32"
    assert found["dtype"] == np.load("U.npy").dtype.name == kind
    expected = polarlib.polar(a.astype("f8")).unitary
    np.testing.assert_allclose(
        np.load("U.npy"), expected, atol=1e-6 if kind == "float32" else 1e-13
    )


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_format(small_blocks, version):
    with open("a.npy", "wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that only newer versions of NumPy read it
        np.lib.format.write_array(file, np.asfortranarray(A), version)
    done("polar", "a.npy", "-o", "U.npy", "--memory", "1GB")
    np.testing.assert_allclose(np.load("U.npy"), polarlib.polar(A).unitary, atol=1e-14)


@pytest.mark.parametrize("kind", [".npy", ".h5", ".zarr"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.thinned(2)
def test_matrices_without_entries(here, kind, shape):
    pytest.importorskip({".npy": "numpy", ".h5": "h5py", ".zarr": "zarr"}[kind])
    files.write(f"a{kind}", np.zeros(shape, "f4"))
    done("polar", f"a{kind}", "-o", f"U{kind}", "--hermitian", f"H{kind}", "--memory", "1GB")
    assert files.read(f"U{kind}").shape == shape
    assert files.read(f"H{kind}").shape == (min(shape),) * 2
    assert left(here) == [f"H{kind}", f"U{kind}", f"a{kind}"]
    assert "at least" in refused_memory("1", f"a{kind}")


@pytest.mark.parametrize("kind", ["bfloat16", "12 bits"])
def test_types_of_hdf5_that_numpy_lacks(small_blocks, kind):
    """Their bytes are not those of the dtype that h5py gives."""
    h5py = pytest.importorskip("h5py")
    if kind == "bfloat16":
        stored = h5py.h5t.IEEE_F32LE.copy()
        stored.set_fields(15, 7, 8, 0, 7)  # sign, exponent and mantissa: first bits, sizes
        stored.set_precision(16)
        stored.set_size(2)
        stored.set_ebias(127)
    else:
        stored = h5py.h5t.STD_I16LE.copy()
        stored.set_precision(12)
        stored.set_offset(2)
    with h5py.File("a.h5", "w") as file:
        space = h5py.h5s.create_simple(A.shape)
        file["a"] = h5py.Dataset(h5py.h5d.create(file.id, None, stored, space))
        file["a"][...] = np.round(100 * A)
        a = file["a"][...].astype("f8")
    done("polar", "a.h5", "--hermitian", "H.npy", "--memory", "1GB")
    np.testing.assert_allclose(np.load("H.npy"), polarlib.polar(a).hermitian, rtol=0, atol=1e-3)


def test_square_matrices_have_both_sides():
    a = RNG.standard_normal((5, 5))
    np.save("a.npy", a)
    for side in ("left", "right"):
        found = document(
            "polar", "a.npy", "--hermitian", "H.npy", "--memory", "1GB", "--side", side
        )
        assert found["side"] == side
        expected = polarlib.polar(a, side=side).hermitian
        np.testing.assert_allclose(np.load("H.npy"), expected, atol=1e-13)


def test_rank_deficient_matrices_have_the_partial_isometry():
    a = A.copy()
    a[:, 5] = a[:, 0]
    np.save("a.npy", a)
    text = done("polar", "a.npy", "-o", "U.npy", "--memory", "1GB", "--no-completion")
    assert re.search(r"rank +5 \(U is the partial isometry\)", text)
    expected = polarlib.polar(a, completion=False).unitary
    np.testing.assert_allclose(np.load("U.npy"), expected, atol=1e-13)


def test_a_matrix_that_does_not_converge(here, monkeypatch):
    np.save("a.npy", A)
    call = polarlib.polar_tall

    def failing(x, **rest):
        return call(x, **rest)._replace(status=polarlib.Status.NOT_CONVERGED)

    monkeypatch.setattr(polarlib, "polar_tall", failing)
    result = invoke("polar", "a.npy", "-o", "U.npy", "--memory", "1GB")
    assert result.exit_code == 1
    assert result.stderr.endswith("; nothing was written\n")
    assert left(here) == ["a.npy"]


def test_several_threads(small_blocks, monkeypatch):
    monkeypatch.setattr(out_of_core, "_threads", lambda: 3)
    monkeypatch.setattr(out_of_core, "LEAST_OF_SEVERAL", 0)
    np.save("a.npy", A)
    text = done("polar", "a.npy", "-o", "U.npy", "--memory", "1GB")
    assert "in 3 threads" in text
    np.testing.assert_allclose(np.load("U.npy"), polarlib.polar(A).unitary, atol=1e-14)


# -- memory ----------------------------------------------------------------------------------


def test_peak_memory_is_reported(monkeypatch):
    np.save("a.npy", A)
    for more in ((), ("--memory", "1GB")):
        peak = document("polar", "a.npy", *more)["peak_memory"]
        assert isinstance(peak, int)
        assert 2**24 < peak < memory.physical_memory()
    x = np.ones(2**25)  # 268 MB
    assert memory.peak_memory() >= x.nbytes
    monkeypatch.setattr("builtins.open", lambda *args: (_ for _ in ()).throw(OSError()))
    assert memory.peak_memory() is None or memory.peak_memory() >= x.nbytes
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_memory() is None


def resident(pid):
    """Resident memory of a process and of the processes that it started, in bytes."""
    total = 0
    for entry in os.listdir("/proc"):
        try:
            if entry == str(pid) or (entry.isdigit() and parent(entry) == pid):
                with open(f"/proc/{entry}/smaps_rollup") as lines:
                    total += 1024 * sum(int(x.split()[1]) for x in lines if x.startswith("Rss:"))
        except (OSError, IndexError, ValueError):
            continue  # it has ended
    return total


def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def peak(*args):
    """Peak memory that a run reports; that of its processes, as seen from here, is no larger."""
    command = [sys.executable, "-m", "polarlib", "polar", *map(str, args), "--json"]
    seen = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        pool = concurrent.futures.ThreadPoolExecutor(1)
        ended = pool.submit(process.communicate, timeout=120)
        while not concurrent.futures.wait([ended], 0.1).done:
            seen = max(seen, resident(process.pid))
        out, err = ended.result()
    assert process.returncode == 0, err
    found = int(re.search(rb'"peak_memory": (\d+)', out)[1])
    assert seen <= found + 2**20
    return found


def write_in_pieces(name, m, n, dtype="f8"):
    """Write an .npy file larger than what this process should hold."""
    piece = RNG.standard_normal((m // 10, n)).astype(dtype)
    with open(name, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (m, n)}
        np.lib.format.write_array_header_1_0(file, header)
        for k in range(10):
            file.write(((k + 1) * piece).tobytes())


@linux
@pytest.mark.parametrize(
    ("m", "n", "dtype", "bound"),
    [
        (200_000, 30, "f8", 16e6),  # 48 MB
        pytest.param(30, 250_000, "f8", 20e6, marks=pytest.mark.slow),
        pytest.param(1_000_000, 30, "f4", None, marks=pytest.mark.slow),
        pytest.param(20_000, 500, "f8", None, marks=pytest.mark.slow),
        pytest.param(4_000, 1000, "c16", None, marks=pytest.mark.slow),
    ],
)
def test_the_bound_holds(m, n, dtype, bound):
    """Beyond the peak of a run on a small matrix; without `bound` the least that is allowed."""
    write_in_pieces("a.npy", m, n, dtype)
    np.save("small.npy", RNG.standard_normal((8, 3)))
    if bound is None:
        bound = 1e6 * int(re.search(r"at least (\d+) MB", refused_memory("1"))[1])
    begin = peak("small.npy", "-o", "V.npy", "--memory", "1GB")
    assert peak("a.npy", "-o", "U.npy", "--memory", int(bound)) <= begin + bound
    u = np.load("U.npy", mmap_mode="r")
    assert u.shape == (m, n)
    u = u if m > n else u.T
    part = np.asarray(u[:: max(len(u) // 1000, 1)])
    assert np.isfinite(part).all()


# -- values of --memory ----------------------------------------------------------------------


def refused_memory(text, name="a.npy", *more):
    return refused("polar", name, "--memory", text, *more)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GB", 10**9),
        ("500mb", 500e6),
        ("2GiB", 2**31),
        ("1.5e9", 1.5e9),
        ("800000000", 8e8),
        (".5 TB", 5e11),
        ("700M", 7e8),
    ],
)
def test_sizes(monkeypatch, text, size):
    layout = out_of_core._Layout(100, 5, np.dtype("f8"), np.dtype("f8"), False, None)
    for need, fits in ((size, True), (size + 1, False)):
        monkeypatch.setattr(out_of_core._Layout, "need", lambda self, plan, need=need: need)
        if fits:
            assert out_of_core._planned(text, layout, (100, 5)).rows == 100
        else:
            with pytest.raises(ValueError, match=re.escape(f"--memory {text} is too small")):
                out_of_core._planned(text, layout, (100, 5))


@pytest.mark.parametrize(
    "text", ["", "much", "1XB", "GB", "nan", "inf", "1e999", "1,5GB", "-", "9i"]
)
def test_sizes_that_cannot_be_read(here, text):
    np.save("a.npy", A)
    message = refused_memory(text, "a.npy", "-o", "U.npy")
    assert f"got {text!r}; 400 x 6 in float64 needs at least" in message
    assert re.search(r"at least \d+ MB\n$", message)
    assert left(here) == ["a.npy"]


@pytest.mark.parametrize("text", ["0", "-1GB", "-5", "0MB"])
def test_sizes_that_are_not_positive(text):
    np.save("a.npy", A)
    message = refused("polar", "a.npy", f"--memory={text}")
    assert f"--memory must be positive, got '{text}'; 400 x 6 in float64 needs" in message


def test_the_least_is_named_and_is_enough():
    np.save("a.npy", np.zeros((3000, 64), "f4"))
    text = refused_memory("1kB")
    found = re.fullmatch(
        r"polarlib: --memory 1kB is too small for 3000 x 64 in float32; at least (\d+) MB\n", text
    )
    done("polar", "a.npy", "--memory", f"{found[1]}MB")
    # A smaller side of 20000 needs matrices of 20000 x 20000.
    blocks.new_matrix("large.npy", ".npy", (20_000, 3), np.dtype("f4"), (1, 1))
    os.truncate("large.npy", 128 + 4 * 20_000 * 20_001)
    with open("large.npy", "r+b") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (20_001, 20_000)}
        np.lib.format.write_array_header_1_0(file, header)
    text = refused_memory("1GB", "large.npy")
    assert "1GB is too small for 20001 x 20000 in float32; at least" in text


def test_more_memory_gives_larger_blocks_and_never_too_few():
    for m, n, chunks in ((10**6, 10, None), (10**5, 500, (1000, 500)), (3000, 3000, None)):
        layout = out_of_core._Layout(m, n, np.dtype("f8"), np.dtype("f8"), False, chunks)
        least = min(layout.need(plan) for plan in layout.plans())
        for bound in (least, 2 * least, 10 * least, 1000 * least):
            plan = out_of_core._planned(f"{bound + 1:.0f}", layout, (m, n))
            assert layout.need(plan) <= bound + 1
            assert plan.rows >= min(m, n, 1000)
            if chunks and plan.rows < m:
                assert plan.rows % chunks[0] == 0 or plan.rows < chunks[0]


# -- what is refused -------------------------------------------------------------------------


def test_options_that_do_not_combine():
    np.save("a.npy", A)
    np.save("w.npy", A.T)
    for more, text in (
        (("--method", "qdwh"), "--method qdwh must not be given with --memory"),
        (("--rtol", "1e-3"), "--rtol must not be given with --memory"),
        (("--completion",), "--completion must not be given with --memory"),
        (("--side", "left"), "--side left has a Hermitian factor of 400 x 400"),
        (("--side", "up"), "--side must be right or left, got 'up'"),
    ):
        message = refused_memory("1GB", "a.npy", *more)
        assert text in message
    message = refused_memory("1GB", "w.npy", "--side", "right")
    assert "use --side left, whose factor is 6 x 6" in message


def test_files_that_are_not_read(here):
    np.savez("a.npz", A)
    np.save("stack.npy", np.zeros((2, 3, 4)))
    np.save("long.npy", np.zeros((3, 2), np.longdouble))
    np.save("text.npy", np.array([["a", "b"]]))
    np.save("cut.npy", A)
    os.truncate("cut.npy", 9000)
    with open("negative.npy", "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (-2, -3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(48))
    np.save("nan.npy", np.where(np.arange(2400).reshape(400, 6) == 777, np.nan, A))
    np.save("wnan.npy", np.load("nan.npy").T)
    before = left(here)
    for name, text in {
        "a.npz": ".npz files are not read in blocks; convert it to .npy",
        "stack.npy": "one matrix is needed, got an array of shape (2, 3, 4)",
        "text.npy": "not numbers",
        "cut.npy": "damaged or cut short",
        "negative.npy": "damaged or cut short",
        "missing.npy": "no such file",
        "digits_head_late": "a bundled matrix, not a file; leave --memory out",
        "nan.npy": "(129, 3) of its rows 0 to 399",
        "wnan.npy": "(3, 129) of its columns 0 to 399",
        "a.npy:x": "no such file",
    }.items():
        message = refused_memory("1GB", name, "-o", "U.npy")
        assert message.startswith(f"polarlib: {name}: ")
        assert text in message
    if np.dtype(np.longdouble) != np.float64:
        assert "which --memory does not read" in refused_memory("1GB", "long.npy")
    assert left(here) == before


def test_outputs_that_are_refused(here):
    np.save("a.npy", A)
    (here / "folder.npy").mkdir()
    (here / "U.zarr").mkdir()
    for output, text in {
        "a.npy": "would overwrite the input",
        "folder.npy": "is a folder",
        "U.zarr": "exists already",
        "no/U.npy": "there is no folder",
        "U.txt": "name a file that ends in",
    }.items():
        message = refused_memory("1GB", "a.npy", "-o", output)
        assert message.startswith(f"polarlib: -o {output}: ")
        assert text in message
    assert left(here) == ["U.zarr", "a.npy", "folder.npy"]


def test_a_full_disk_is_found_before_the_matrix_is_read(here, monkeypatch):
    resource = pytest.importorskip("resource")
    np.save("a.npy", A)
    (here / "U.npy").write_bytes(b"as it was")
    monkeypatch.setattr(polarlib, "polar_tall", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, hard))
    try:
        text = refused_memory("1GB", "a.npy", "-o", "U.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert text == f"polarlib: -o U.npy: cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert (here / "U.npy").read_bytes() == b"as it was"
    assert left(here) == ["U.npy", "a.npy"]


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "chunks.h5"])
def test_a_matrix_that_changes_while_it_is_read(here, small_blocks, monkeypatch, name):
    save(name, A)
    call = polarlib.polar_tall

    def changing(x, **rest):
        result = call(x, **rest)
        save(name, A[::-1])
        return result

    monkeypatch.setattr(polarlib, "polar_tall", changing)
    text = f"polarlib: {name}: changed while it was read; start again\n"
    assert refused_memory("1GB", name, "-o", "U.npy") == text
    assert left(here) == [name]


def test_without_dask(monkeypatch):
    np.save("a.npy", A)
    monkeypatch.setitem(sys.modules, "dask.array", None)
    text = refused_memory("1GB")
    assert text == "polarlib: --memory needs dask.array; install polarlib[dask]\n"


# -- progress --------------------------------------------------------------------------------


def test_progress_counts_blocks(small_blocks, monkeypatch):
    monkeypatch.setattr(progress, "AFTER", -1.0)
    monkeypatch.setattr(progress, "EVERY", -1.0)
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    np.save("a.npy", A)
    text = invoke("polar", "a.npy", "-o", "U.npy", "--memory", "1GB").stderr
    for what in ("pass 1", "U"):  # a sample is read before the first pass
        counts = {int(k) for k in re.findall(rf"(\d+)/\d+ \S+ blocks of {what}\b", text)}
        total = int(re.search(rf"\d+/(\d+) \S+ blocks of {what}\b", text)[1])
        assert counts == set(range(total + 1))
        assert total > 5
    assert invoke("polar", "a.npy", "--memory", "1GB", "--json").stderr == ""


# -- runs that end early ---------------------------------------------------------------------

STOPS = """
import os, signal, sys, time
from polarlib.cli import main, out_of_core
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
out_of_core.LARGEST_BLOCK = 2048
phase, number = sys.argv.pop().rsplit(" ", 1)
counts = {}
def counted(call, where):
    def counting(*args):
        now = where(args)
        counts[now] = counts.get(now, 0) + 1
        if (now, counts[now]) == (phase, int(number)):
            print("here", flush=True)
            time.sleep(60)
        return call(*args)
    return counting
blocks = out_of_core._Blocks
blocks.__getitem__ = counted(blocks.__getitem__, lambda args: args[0]._what)
os.replace = counted(os.replace, lambda args: "replace")
main()
"""
# What is counted, and how far. U is renamed first, and then H.
PHASES = {
    "pass": "blocks of pass 1 3",
    "writing": "blocks of U 6",
    "before U": "replace 1",
    "between U and H": "replace 2",
}


def stopped(stop, number, output):
    """Run until a moment, and end the process by a signal; return its code and stderr."""
    args = ["polar", "a.npy", "-o", output, "--hermitian", "H.npy", "--memory", "1GB", stop]
    env = {k: v for k, v in os.environ.items() if k not in PLAIN}
    with subprocess.Popen(
        [sys.executable, "-c", STOPS, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    ) as process:
        try:
            line = process.stdout.readline()
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert line == b"here\n", err
    return process.returncode, err


@posix
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.thinned(2)
def test_after_a_kill_the_next_run_leaves_its_outputs_alone(here, phase):
    np.save("a.npy", A)
    np.save("U.npy", A[:3])
    np.save("H.npy", A[:2])
    assert stopped(PHASES[phase], signal.SIGKILL, "U.npy") == (-9, b"")
    u = np.load("U.npy")
    expected = polarlib.polar(A).unitary
    new = phase == "between U and H"
    np.testing.assert_allclose(u, expected if new else A[:3], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(np.load("H.npy"), A[:2])
    assert ".U.npy.polarlib-part" in left(here) or new
    assert ".H.npy.polarlib-part" in left(here)
    done("polar", "a.npy", "-o", "U.npy", "--hermitian", "H.npy", "--memory", "1GB")
    assert left(here) == ["H.npy", "U.npy", "a.npy"]
    np.testing.assert_allclose(np.load("U.npy"), expected, rtol=0, atol=1e-14)


@posix
def test_a_killed_run_leaves_no_folder_of_zarr(here):
    pytest.importorskip("zarr")
    np.save("a.npy", A)
    assert stopped(PHASES["writing"], signal.SIGKILL, "U.zarr") == (-9, b"")
    assert left(here) == [".H.npy.polarlib-part", ".U.zarr.polarlib-part", "a.npy"]
    done("polar", "a.npy", "-o", "U.zarr", "--hermitian", "H.npy", "--memory", "1GB")
    assert left(here) == ["H.npy", "U.zarr", "a.npy"]
    np.testing.assert_allclose(files.read("U.zarr"), polarlib.polar(A).unitary, atol=1e-14)


@posix
@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (signal.SIGINT, 130, b"polarlib: interrupted\n"),
        (signal.SIGTERM, -signal.SIGTERM, b""),
    ],
)
def test_signals(here, number, code, text):
    np.save("a.npy", A)
    np.save("U.npy", A[:3])
    assert stopped(PHASES["writing"], number, "U.npy") == (code, text)
    assert left(here) == ["U.npy", "a.npy"]
    np.testing.assert_array_equal(np.load("U.npy"), A[:3])


@posix
@pytest.mark.parametrize("output", ["U.npy", "U.zarr"])
def test_two_runs_do_not_write_one_output(here, output):
    pytest.importorskip("zarr")
    np.save("a.npy", A)
    with unfinished(output, folder=output == "U.zarr") as name:
        text = refused_memory("1GB", "a.npy", "-o", output)
        assert text.startswith(f"polarlib: -o {output}: is being written by another process; ")
        assert os.path.exists(name)
    assert left(here) == ["a.npy"]


def test_names_that_are_in_the_way(here):
    np.save("a.npy", A)
    (here / ".U.npy.polarlib-part").mkdir()
    (here / ".U.npy.polarlib-part" / "x").write_text("x")
    (here / ".H.npy.polarlib-part").symlink_to("a.npy")
    (here / ".U.npy.polarlib-part-old").write_text("of a killed run")
    name = "x" * 240 + ".npy"
    done("polar", "a.npy", "-o", "U.npy", "--hermitian", "H.npy", "--memory", "1GB")
    done("polar", "a.npy", "-o", name, "--memory", "1GB")
    assert left(here) == ["H.npy", "U.npy", "a.npy", name]
    np.testing.assert_array_equal(np.load("a.npy"), A)


# -- Zarr without --memory -------------------------------------------------------------------


def test_zarr_without_memory(here):
    pytest.importorskip("zarr")
    np.save("a.npy", A)
    done("polar", "a.npy", "-o", "U.zarr", "--hermitian", "H.npy")
    expected = polarlib.polar(A)
    np.testing.assert_array_equal(files.read("U.zarr"), expected.unitary)
    np.testing.assert_array_equal(files.read("H.npy"), expected.hermitian)
    assert "-o U.zarr: exists already; remove it" in refused("polar", "a.npy", "-o", "U.zarr")
    assert left(here) == ["H.npy", "U.zarr", "a.npy"]
