"""The command line: every command, its JSON, its exit codes, and errors of one line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import scipy.io
from shell import ONE, PLAIN, A, document, done, invoke, refused, run
from typer.testing import CliRunner

import polarlib
from polarlib import cli, files
from polarlib.arrays import entry
from polarlib.cli import console, everything

pytestmark = pytest.mark.usefixtures("here")

# -- the shell --------------------------------------------------------------------------------


def test_help_lists_every_command():
    text = done("--help")
    assert text == done("-h") == done()
    assert "Example: polarlib " in text
    for command in ("polar", "compare", "converge", "design", "schedules", "info"):
        line = next(x for x in text.splitlines() if x.strip().startswith(f"{command} "))
        assert line.endswith(".")
        assert "..." not in line
        assert "Usage: " in done(command, "--help")
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
def test_examples_in_the_help_are_not_errors():
    for command in ("polar", "compare", "converge", "design", "schedules"):
        example = re.search(r"Example: polarlib (.*)", done(command, "--help"))[1]
        assert "Traceback" not in done(*example.split())


def test_version():
    assert done("--version") == f"polarlib {polarlib.__version__}\n"


def test_module_and_script_are_one():
    shown = run()
    assert shown.returncode == 0
    assert shown.stdout.startswith("Usage: polarlib [OPTIONS] COMMAND")
    assert shown.stderr == ""
    failed = run("polar", "missing.npy")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr == "polarlib: missing.npy: no such file\n"


def test_import_is_lean():
    heavy = ("torch", "jax", "cupy", "dask", "matplotlib", "safetensors", "scipy.io")
    code = f"import sys, polarlib.cli; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout == "[]\n"


def test_a_reader_may_leave_early():
    command = [sys.executable, "-m", "polarlib", "schedules", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == 0


def test_names_that_the_terminal_cannot_encode(here):
    np.save("é.npy", A)
    command = [sys.executable, "-m", "polarlib", "polar", "é.npy", "-o", "Ü.npy"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, capture_output=True, env=env, timeout=60)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"\\xdc.npy" in shown.stdout
    assert (here / "Ü.npy").exists()


ODD = "\x1b[31m[red]\n\u202ex\udcff"
ESCAPED = r"\x1b[31m[red]\n\u202ex\udcff"


def test_control_characters_of_names_are_escaped(here, monkeypatch):
    """ESC bytes, line breaks, marks of direction, undecodable bytes; markup is no markup."""
    name = f"{ODD}.npy"
    try:
        np.save(name, A)
    except (OSError, UnicodeError):
        name = name.replace("\udcff", "")
        np.save(name, A)
    escaped = name.replace(ODD[:-1], ESCAPED[:-6]).replace("\udcff", r"\udcff")
    monkeypatch.setattr(everything, "METHODS", ("svd",))
    monkeypatch.setattr(polarlib, "schedules", lambda target=None: ())
    out = f"{ODD[:-1]}-U.npy"
    shown = [
        done("polar", name, "-o", out),
        done("converge", name),
        done("compare", name, "--no-plots", "--all"),
        done("design", "--lower", "0.1", "--steps", "2", "--name", ODD),
        refused("polar", f"no{name}"),
        refused("polar", name, "--method", ODD),
        refused("converge", name, "--csv", f"{ODD}/x.csv"),
        refused(ODD),
        refused(f"--{ODD}"),
    ]
    for text in shown:
        assert text.replace("\n", "").isprintable()
        assert "[red]" in text
    assert all(escaped in text for text in shown[1:3])
    assert document("converge", name)["file"] == name


@pytest.mark.slow
def test_plots_of_files_with_any_name(here):
    for k, name in enumerate((f"{ODD[:-1]}$\\frac{{a}}$日本語", "n" * 240)):
        np.save(f"{name}.npy", A)
        dataclasses.replace(polarlib.design.greedy(0.1, [5]), name=name).to_json(f"{name}.json")
        schedule = ("--schedule", f"{name}.json")
        found = document("compare", f"{name}.npy", "--plots", f"P{k}", *schedule)
        assert {path.name for path in (here / f"P{k}").iterdir()} == {
            os.path.basename(path) for path in found["plots"]
        }
        assert all(os.path.basename(path).isprintable() for path in found["plots"])
        done("design", "--lower", "0.1", "--steps", "2", "--name", name, "--plot", "p.png")
        done("converge", f"{name}.npy", *schedule, "--plot", "c.png")


@pytest.mark.parametrize("columns", ["0", "-5", "abc", "²", "1", "9" * 5000, "1e3", " "])
def test_any_number_of_columns(columns):
    for text in (done("polar", "A.npy", COLUMNS=columns), done("--help", COLUMNS=columns)):
        assert "\n" in text
    result = invoke("polar", "missing.npy", COLUMNS=columns)
    assert (result.exit_code, result.stderr) == (2, "polarlib: missing.npy: no such file\n")


def test_long_messages_are_cut():
    assert len(refused("polar", "x" * 10_000)) < console.LONGEST + 40


def test_links_in_circles(here):
    try:
        (here / "loop.npy").symlink_to("loop.npy")
    except OSError:
        pytest.skip("no links")
    assert "loop.npy: cannot be read" in refused("polar", "loop.npy", "-o", "U.npy")
    assert "-o loop.npy: cannot be written" in refused("polar", "A.npy", "-o", "loop.npy")
    assert "--plots loop.npy" in refused("compare", "A.npy", "--plots", "loop.npy")


def test_both_factors_are_written_or_neither(here, monkeypatch):
    (here / "U.npy").write_bytes(b"as it was")
    replace = os.replace

    def full(source, target):
        if str(target).endswith("H.npy"):
            raise OSError(28, "No space left on device", source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    text = refused("polar", "A.npy", "-o", "U.npy", "--hermitian", "H.npy")
    assert text == "polarlib: --hermitian H.npy: cannot be written: No space left on device\n"
    assert (here / "U.npy").read_bytes() == b"as it was"
    assert {path.name for path in here.iterdir()} == {"A.npy", "U.npy"}


@pytest.mark.parametrize(
    "args",
    [
        ("converge", "A.npy", "--steps", "10000000"),
        ("converge", "A.npy", "--steps", "9" * 400),
        ("schedules", "jordan", "--steps", "101"),
        ("design", "--lower", "0.1", "--steps", "10000000"),
        ("design", "--lower", "0.1", "--matmuls", "10000000"),
        ("design", "--lower", "0.1", "--degrees", "10001"),
        ("design", "--lower", "0.1", "--degrees", ",".join(["3"] * 101)),
        ("bench", "--sizes", "1000000"),
        ("bench", "--seconds", "1e9"),
    ],
)
def test_limits(args):
    assert re.search(r"<=|less than or equal|at most|up to|from 2 to", refused(*args))


def test_devices_that_numpy_does_not_have():
    assert "numpy has no arrays on a GPU" in refused("bench", "--device", "gpu")


@pytest.mark.slow
def test_a_device_that_is_not_there(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "asarray", lambda *args, **rest: torch.zeros(1, device="nowhere"))
    assert "torch cannot use a gpu" in refused("bench", "--device", "gpu", "--library", "torch")


@pytest.mark.slow
def test_without_docstrings():
    """Python strips them with -OO; help and the list of methods are the same."""
    code = (
        "import json, sys, polarlib; from polarlib.cli import app; "
        "print(json.dumps(polarlib.methods())); app(['polar', '--help'])"
    )
    shown = subprocess.run(
        [sys.executable, "-OO", "-c", code], capture_output=True, text=True, timeout=60
    )
    listed, _, text = shown.stdout.partition("\n")
    assert json.loads(listed) == polarlib.methods()
    assert text.partition("\n")[2].split() == done("polar", "--help").partition("\n")[2].split()


posix = pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "code", "out", "err"),
    [
        ("polar A.npy >&-", 0, "", ""),
        ("polar missing.npy 2>&-", 2, "", ""),
        ("polar A.npy --json >&- 2>&-", 0, "", ""),
        ("schedules > /dev/full", 2, "", "polarlib: standard output: No space left on device\n"),
        ("--help > /dev/full", 2, "", "polarlib: No space left on device\n"),
        ("polar missing.npy 2> /dev/full", 2, "", ""),
        ("schedules --json | head -n 1", 0, "{\n", ""),
        ("polar $'\\xff.npy'", 2, "", "polarlib: \\udcff.npy: no such file\n"),
        ("polar A.npy -o /dev/full.npy", 0, None, ""),
    ],
)
def test_streams(here, call, code, out, err):
    if call.endswith("/dev/full.npy"):  # a device as a file
        (here / "full.npy").symlink_to("/dev/full")
        call, code, out = "polar A.npy -o full.npy", 2, ""
        err = "polarlib: -o full.npy: is a pipe, a socket or a device; name a file\n"
    if "/dev/full" in call and not os.path.exists("/dev/full"):
        pytest.skip("the system has no full device")
    shown = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m polarlib {call}"],
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k not in PLAIN},
        timeout=120,
    )
    found = (shown.returncode, shown.stdout.decode(), shown.stderr.decode())
    assert found == (code, out, err)


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"TERM": "dumb"},
        {"NO_COLOR": "1", "COLUMNS": "0"},
        {"HOME": "/nowhere", "MPLCONFIGDIR": "/proc/nowhere"},
    ],
)
def test_surroundings(here, env):
    np.save("é.npy", A)
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH")}
    command = [sys.executable, "-m", "polarlib", "converge", "é.npy", "--plot", "p.png"]
    shown = subprocess.run(command, capture_output=True, env=kept | env, timeout=120)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"\x1b" not in shown.stdout
    assert (here / "p.png").exists()


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", -15), ("SIGHUP", -1)])
def test_signals_while_a_file_is_written(here, name, code):
    (here / "U.npy").write_bytes(b"as it was")
    program = """
import signal, sys, numpy
# What runs the tests may have them ignored, as nohup does.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def save(file, array, **rest):
    file.write(b"half")
    print("writing", flush=True)
    while True:
        pass
numpy.save = save
from polarlib.cli import main
sys.argv = ["polarlib", "polar", "A.npy", "-o", "U.npy", "--hermitian", "H.npy"]
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(getattr(signal, name))
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert err == (b"polarlib: interrupted\n" if code == 130 else b"")
    assert {path.name for path in here.iterdir()} == {"A.npy", "U.npy"}
    assert (here / "U.npy").read_bytes() == b"as it was"


def test_usage_errors():
    assert "bogus" in refused("bogus")
    assert "--bogus" in refused("--bogus")
    assert "polarlib polar --help" in refused("polar", "A.npy", "--bogus")
    assert "FILE" in refused("polar")
    refused("polar", "A.npy", "B.npy")
    refused("polar", "A.npy", "--rtol", "small")
    refused("polar", "A.npy", "--json", "--bogus")
    refused("converge", "A.npy", "--steps", "2.5")


def test_internal_errors_are_told_from_bad_input(monkeypatch):
    def broken(*args, **rest):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(polarlib, "polar", broken)
    text = refused("polar", "A.npy", code=70)
    assert "internal error, ZeroDivisionError: two lines" in text
    result = CliRunner(env={"POLARLIB_TRACEBACK": "1"}).invoke(cli.app, ["polar", "A.npy"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_interruption_and_lack_of_memory(monkeypatch):
    def raises(error):
        def compute(*args, **rest):
            raise error

        return compute

    monkeypatch.setattr(polarlib, "polar", raises(KeyboardInterrupt()))
    assert refused("polar", "A.npy", code=130) == "polarlib: interrupted\n"
    monkeypatch.setattr(polarlib, "polar", raises(MemoryError()))
    assert "memory" in refused("polar", "A.npy")


# -- polar ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", "i8"])
def test_polar_round_trip(dtype, side):
    a = (5 * A).astype(dtype)
    np.save("A.npy", a)
    text = done("polar", "A.npy", "-o", "U.npy", "--hermitian", "H.npy", "--side", side)
    u, h = np.load("U.npy"), np.load("H.npy")
    expected = polarlib.polar(a, side=side)
    # To rounding: the file's array may lie elsewhere in a cache line, where BLAS sums otherwise.
    rtol = 8 * np.finfo(u.dtype).eps
    np.testing.assert_allclose(u, expected.unitary, rtol=0, atol=rtol)
    np.testing.assert_allclose(h, expected.hermitian, rtol=rtol, atol=rtol * abs(h).max())
    assert "converged: nothing to do" in text
    assert "U.npy" in text
    assert "H.npy" in text


def test_polar_json():
    found = document("polar", "A.npy", "-o", "U.npy")
    expected = polarlib.polar(A)
    for name, value in expected.to_dict().items():
        assert found[name] == value
    assert found["unitary_file"] == "U.npy"
    assert found["hermitian_file"] is None
    assert found["remedy"] == expected.status.value


def test_polar_without_outputs(here):
    done("polar", "A.npy")
    assert [path.name for path in here.iterdir()] == ["A.npy"]


def test_polar_of_a_stack_of_wide_matrices():
    stack = np.random.default_rng(1).standard_normal((3, 2, 5))
    np.save("A.npy", stack)
    assert re.search(r"orthogonality +\S+ to ", done("polar", "A.npy", "-o", "U.npy"))
    np.testing.assert_array_equal(np.load("U.npy"), polarlib.polar(stack).unitary)
    assert len(document("polar", "A.npy")["orthogonality"]) == 3


@pytest.mark.parametrize("method", ["qdwh", "newton", "newton_schulz", "jordan", "qr"])
def test_polar_methods(method):
    # A fixed schedule that ends short of orthonormal, and a factor of another kind, are no failure.
    found = document("polar", "A.npy", "--method", method, "-o", "U.npy")
    assert found["method"] == method
    np.testing.assert_array_equal(np.load("U.npy"), polarlib.polar(A, method=method).unitary)


def test_polar_completion():
    np.save("A.npy", np.zeros((3, 2)))
    done("polar", "A.npy", "-o", "U.npy")
    np.testing.assert_allclose(np.load("U.npy").T @ np.load("U.npy"), np.eye(2))
    done("polar", "A.npy", "-o", "U.npy", "--no-completion")
    assert not np.load("U.npy").any()


def test_polar_that_misses_its_tolerance(here):
    (here / "U.npy").write_bytes(b"as it was")
    result = invoke("polar", "A.npy", "-o", "U.npy", "--rtol", "1e-30")
    assert result.exit_code == 1
    assert "not_converged" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "larger rtol" in result.stderr
    assert (here / "U.npy").read_bytes() == b"as it was"
    found = document("polar", "A.npy", "--rtol", "1e-30", code=1)
    assert found["status"] == "not_converged"
    assert found["unitary_file"] is None


def test_polar_whose_hermitian_factor_overflows():
    np.save("A.npy", 1.7e308 * np.array([[1.0, 1.0], [1.0, -1.0]]))
    assert document("polar", "A.npy", code=1)["status"] == "overflow"


def test_polar_of_other_files():
    np.savez("two.npz", a=A, b=2 * A)
    scipy.io.mmwrite("A.mtx", A, precision=17)
    for source in ("two.npz:b", "A.mtx"):
        done("polar", source, "-o", "U.npy")
        np.testing.assert_allclose(np.load("U.npy"), polarlib.polar(A).unitary, atol=1e-14)
    assert "'a', 'b'" in refused("polar", "two.npz")


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_polar_of_narrow_tensors(name):
    safetensors = pytest.importorskip("safetensors.numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = A.astype(getattr(ml_dtypes, name))
    safetensors.save_file({"w": a, "x": a}, "model.safetensors")
    done("polar", "model.safetensors:w", "-o", "U.npy")
    u = np.load("U.npy")
    assert u.dtype == np.float32
    np.testing.assert_array_equal(u, polarlib.polar(a.astype(np.float32)).unitary)


def test_polar_of_a_bundled_matrix():
    done("polar", ONE, "-o", "U.npy")
    np.testing.assert_array_equal(
        np.load("U.npy"), polarlib.polar(files.sample_matrices()[ONE]).unitary
    )
    assert f"did you mean '{ONE}'" in refused("polar", ONE[:-1])


# -- wrong inputs, for every command that takes a file ----------------------------------------


@pytest.fixture
def wrong(here):
    """Files that are no matrices, by what is wrong with them."""
    with_nan = A.copy()
    with_nan[1, 2] = np.nan
    np.save("nan.npy", with_nan)
    np.save("infinite.npy", np.array([[np.inf, 1.0]]))
    np.save("vector.npy", A[0])
    np.save("scalar.npy", np.array(1.0))
    np.save("text.npy", np.array([["a"]]))
    np.save("pickle.npy", np.array([[None]]), allow_pickle=True)
    np.save("longdouble.npy", np.ones((2, 2), np.longdouble))
    (here / "cut.npy").write_bytes((here / "A.npy").read_bytes()[:-3])
    (here / "A.txt").write_text("1 2")
    (here / "folder.npy").mkdir()
    names = ["missing.npy", "cut.npy", "pickle.npy", "text.npy", "nan.npy", "infinite.npy"]
    names += ["vector.npy", "scalar.npy", "A.txt", "folder.npy", "missing", ""]
    # Where long doubles are doubles they are welcome.
    return names + ["longdouble.npy"] * (np.dtype(np.longdouble).itemsize > 8)


@pytest.mark.parametrize(
    "command",
    [
        ("polar", "{}", "-o", "out.npy"),
        ("converge", "{}", "--csv", "out.csv"),
        ("compare", "{}", "--plots", "out"),
    ],
    ids=lambda command: command[0],
)
def test_wrong_files(wrong, here, command):
    before = sorted(here.iterdir())
    for name in wrong:
        args = [part.format(name) for part in command]
        assert name in refused(*args)
        refused(*args, "--json")
    assert sorted(here.iterdir()) == before


def test_messages_say_where(wrong):
    assert "index (1, 2)" in refused("polar", "nan.npy")
    assert "shape (4,)" in refused("polar", "vector.npy")


def test_stacks_and_empty_matrices_where_one_matrix_is_needed():
    np.save("stack.npy", np.ones((2, 3, 3)))
    np.save("empty.npy", np.ones((0, 3)))
    for command in ("converge", "compare"):
        assert "(2, 3, 3)" in refused(command, "stack.npy")
        assert "(0, 3)" in refused(command, "empty.npy")
    assert document("polar", "empty.npy", "-o", "U.npy")["rank"] == 0


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("polar", "--method", "qdhw"), "did you mean 'qdwh'"),
        (("polar", "--side", "up"), "'right' or 'left'"),
        (("polar", "--rtol", "5"), "between 0 and 1"),
        (("converge", "--schedule", "jordn"), "did you mean 'jordan'"),
        (("converge", "--precision", "bf16"), "did you mean 'bfloat16'"),
        (("converge", "--form", "fast"), "'plain' or 'gram'"),
        (("converge", "--steps", "0"), "at least 1"),
        (("converge", "--schedule", "cans", "--steps", "9"), "has 5 steps"),
        (("converge", "--schedule", "svd", "--steps", "3"), "stopping test"),
        (("converge", "--schedule", "svd", "--precision", "bfloat16"), "float32 or float64"),
        (("compare", "--precision", "bf16"), "did you mean 'bfloat16'"),
        (("compare", "--image-format", "gif"), "'png', 'pdf', 'svg'"),
        (("compare", "--matrix", "all"), "not both"),
    ],
)
def test_wrong_options(args, hint):
    command, *options = args
    assert hint in refused(command, "A.npy", *options)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("polar", "-o", "nowhere/U.npy"), "no folder nowhere"),
        (("polar", "-o", "U.npz"), ".npy"),
        (("polar", "-o", "folder.npy"), "is a folder"),
        (("polar", "-o", "A.npy"), "overwrite the input"),
        (("polar", "--hermitian", "folder.npy/../A.npy"), "overwrite the input"),
        (("polar", "-o", "U.npy", "--hermitian", "./U.npy"), "overwrite the file of -o"),
        (("converge", "--plot", "out.gif"), ".png"),
        (("converge", "--plot", "nowhere/out.png"), "no folder"),
        (("converge", "--csv", "out.npy"), ".csv"),
        (("compare", "--plots", "A.npy"), "is a file"),
        (("compare", "--plots", "nowhere/plots"), "no folder"),
    ],
)
def test_outputs_that_are_refused(here, args, hint):
    (here / "folder.npy").mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in here.iterdir()}
    command, *options = args
    assert hint in refused(command, "A.npy", *options)
    assert {path.name: path.stat().st_mtime_ns for path in here.iterdir()} == before
    np.testing.assert_array_equal(np.load("A.npy"), A)


def test_outputs_that_fail_while_they_are_written(here, monkeypatch):
    (here / "U.npy").write_bytes(b"as it was")

    def full(*args, **rest):
        raise OSError(28, "No space left on device", "a temporary name")

    monkeypatch.setattr(np, "save", full)
    assert "-o U.npy: cannot be written: No space" in refused("polar", "A.npy", "-o", "U.npy")
    assert (here / "U.npy").read_bytes() == b"as it was"
    assert len(list(here.iterdir())) == 2


def test_folders_that_cannot_be_written(here, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    (here / "plots").mkdir()
    assert "cannot be written" in refused("polar", "A.npy", "-o", "U.npy")
    assert "cannot be written" in refused("compare", "A.npy", "--plots", "plots")


# -- converge ---------------------------------------------------------------------------------


def test_converge_table():
    text = done("converge", "A.npy", "--schedule", "jordan", "--precision", "bfloat16")
    t = polarlib.measure(A, "jordan", precision="bfloat16")
    title, _, *_, rule = text.splitlines()[:5]
    assert title == "A.npy (6 x 4): jordan, bfloat16 (simulated), plain form"
    assert set(rule) <= {"-", " "}
    rows = [line.split() for line in text.splitlines()[5:]]
    assert len(rows) == t.n_steps + 1
    for k, row in enumerate(rows):
        s = t.singular_values[k]
        figures = [k, t.matmuls[k], s.min(), s.max(), t.orthogonality[k], t.backward_error[k]]
        np.testing.assert_allclose(
            [float(x) for x in row], [*figures, t.alignment[k].min()], rtol=0.05, atol=1e-6
        )
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        (["--schedule", "polar_express", "--steps", "7"], {"steps": 7}),
        (["--form", "gram", "--precision", "float16"], {"form": "gram", "precision": "float16"}),
        ([], {}),
    ],
)
def test_converge_json(options, rest):
    found = document("converge", "A.npy", *options)
    t = polarlib.measure(A, options[1] if "--schedule" in options else "auto", **rest)
    for name, value in t.to_dict().items():
        assert found[name] == value


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_converge_shows_what_orthogonalize_does_by_default(precision):
    found = document("converge", "A.npy", "--precision", precision)
    x = A.astype(np.float32)
    t = polarlib.measure(x, polarlib.default_schedule(precision), precision=precision)
    np.testing.assert_allclose(found["singular_values"], t.singular_values, rtol=1e-6)
    q = polarlib.orthogonalize(x, precision=precision, form="plain")
    last = np.linalg.svd(q.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(sorted(found["singular_values"][-1]), last[::-1], rtol=1e-5)
    assert found["method"] == "auto"


def test_converge_of_a_method():
    found = document("converge", "A.npy", "--schedule", "newton")
    assert found["orthogonality"][-1] < 1e-14
    assert "form" not in done("converge", "A.npy", "--schedule", "newton").splitlines()[0]


def test_converge_files(here):
    for suffix, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        name = f"out.{suffix}"
        text = done("converge", ONE, "--plot", name, "--csv", "out.csv")
        assert f"Written to {name}." in text
        assert (here / name).read_bytes().startswith(magic)
    polarlib.measure(files.sample_matrices()[ONE], "auto").to_csv("expected.csv")
    assert (here / "out.csv").read_text() == (here / "expected.csv").read_text()


def test_converge_that_blows_up_is_json_all_the_same():
    # Without a safety factor, in a format of two digits, the iterate overflows.
    np.save("A.npy", np.ones((6, 4)))
    options = ("--schedule", "cans", "--precision", "float8_e5m2", "--steps", "5")
    found = document("converge", "A.npy", *options)
    assert found["singular_values"][-1][0] is None
    assert "no safety factor" in found["notes"][0]
    text = done("converge", "A.npy", *options)
    assert "nan" in text
    assert "! schedule 'cans' diverges above 1.0000" in text


def test_converge_of_a_zero_matrix():
    np.save("A.npy", np.zeros((3, 2)))
    assert document("converge", "A.npy")["orthogonality"][-1] == 1.0


# -- info -------------------------------------------------------------------------------------


def test_info():
    found = document("info")
    assert found["polarlib"] == polarlib.__version__
    assert found["packages"]["numpy"] == found["array_libraries"]["numpy"] == np.__version__
    assert found["formats"]["numpy"]["float32"] == "native"
    assert found["formats"]["numpy"]["bfloat16"] == "simulated"
    assert list(found["formats"]) == ["numpy"]
    found = document("info", "--formats")
    assert set(found["formats"]) == set(found["array_libraries"])
    if "torch" in found["formats"]:
        # On processors without such products they are taken in float32.
        assert found["formats"]["torch"]["bfloat16"] in ("native", "native, in float32")
    assert found["processors"] >= found["processors_usable"] >= 1
    assert found["blas"]["name"]
    text = done("info")
    assert np.__version__ in text
    assert "simulated" in text


def test_info_imports_no_array_library():
    code = (
        "import sys, time; from polarlib.cli import app\n"
        "before = time.process_time()\n"
        "try: app(['info'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'jax', 'dask', 'cupy', 'array_api_strict', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules], time.process_time() - before)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    imported, _, seconds = shown.stdout.splitlines()[-1].rpartition(" ")
    assert imported == "[]"
    assert float(seconds) < 1
    assert "array libraries" in shown.stdout


def test_versions_of_array_libraries_are_those_of_their_packages(monkeypatch):
    """Also where the package has another name than the module, as CuPy's wheels."""
    monkeypatch.setattr(entry, "served", lambda: {"typer": None, "nothing_of_the_kind": None})
    assert entry.libraries()["typer"] == metadata.version("typer")
    assert "nothing_of_the_kind" not in entry.libraries()

    def version(name):
        if name != "cupy-cuda12x":
            raise metadata.PackageNotFoundError(name)
        return "13.0"

    monkeypatch.setattr(entry, "find_spec", lambda name: object() if name == "cupy" else None)
    monkeypatch.setattr(entry, "served", lambda: {"cupy": None})
    monkeypatch.setattr(metadata, "version", version)
    for packages, found in (({"cupy": ["cupy-cuda12x"]}, "13.0"), ({}, "unknown")):
        monkeypatch.setattr(metadata, "packages_distributions", lambda p=packages: p)
        assert entry.libraries() == {"cupy": found}
