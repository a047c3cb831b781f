"""Wrong calls of the command line: one line on stderr and an exit code, whatever is given.

The calls are made from the commands and options that the program has: each option in turn takes
every wrong value, and everything that names a file also every broken file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import typer

import polarlib
from polarlib import bench, cli, timing
from polarlib.cli import compare, console, everything

A = np.random.default_rng(0).standard_normal((6, 4))
SECONDS = 10  # of processor time
HANGS = 120  # seconds

# A valid call of every command, which ends quickly.
BASE = {
    "polar": ["A.npy"],
    "compare": ["A.npy", "--no-plots", "--precision", "float32"],
    "converge": ["A.npy"],
    "schedules": [],
    "design": ["--lower", "0.1", "--steps", "2"],
    "report": ["study", "-o", "r.html"],
    "bench": ["--sizes", "4", "--seconds", "0.001"],
    "info": [],
}
# And of design with an option that asks for something else than an interval, or goes with it.
DESIGNS = {
    "--tune": ["--start", "jordan"],
    "--start": ["--tune", "error"],
    "--target": ["--lower", "0.1", "--steps", "1"],
    "--zolotarev": ["--lower", "0.1"],
    "--bounds": ["--tune", "error", "--start", "jordan"],
    "--normalisation": ["--spectrum", "A.npy", "--steps", "1"],
}
for words, shared in (
    ("--band --error --slope --spectrum", ["--steps", "2"]),
    ("--form --shape", ["--lower", "0.1", "--matmuls", "6"]),
    (
        "--costs --library --batch",
        ["--lower", "0.1", "--matmuls", "6", "--shape", "64,32", "--costs", "costs.toml"],
    ),
):
    DESIGNS |= dict.fromkeys(words.split(), shared)
WORDS = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "1",
    "1.5",
    "1e-400",
    "1e400",
    "9" * 400,
    "-" + "9" * 400,
    "9" * 5000,
    "10000000",
    "2147483648",
    "nan",
    "inf",
    "-inf",
    "٣",
    "²",
    "x",
    "None",
    "True",
    "3,5",
    "3,,5",
    ",",
    "3," * 5000,
    "9" * 500 + ",1",
    "jordan",
    "auto",
    "svd",
    "bfloat16",
    "gpu",
    "torch",
    "JORDAN",
    "a" * 300,
    "b/" * 3000,
    "\x1b[31mred\x1b[0m",
    "[red]x[/red]",
    "[/]",
    "a\nb\rc\td",
    "\u202eabc",
    "\udcff\udc80",
    "%s%n{0}{}{x!r}",
    "$\\frac{a}$",
    "日本語",
    "é'\"\\",
    "*/ int x; /*",
    ".",
    "..",
    "/",
    "~",
    "A.npy",
]
BROKEN = [
    "missing.npy",
    "empty.npy",
    "empty.npz",
    "empty.mtx",
    "empty.safetensors",
    "empty.json",
    "empty.toml",
    "cut.npy",
    "cut.npz",
    "cut.mtx",
    "cut.safetensors",
    "noise.npy",
    "noise.npz",
    "noise.mtx",
    "noise.safetensors",
    "noise.json",
    "noise.toml",
    "noise.csv",
    "pickle.npy",
    "huge.npy",
    "bomb.npz",
    "text.npz",
    "text.npz:readme.txt",
    "text.npz:\x1b[31m",
    "none.npz",
    "sparse.npz",
    "vector.npy",
    "scalar.npy",
    "zero.npy",
    "stack.npy",
    "words.npy",
    "nan.npy",
    "long.mtx",
    "deep.json",
    "digits.json",
    "nan.json",
    "twice.json",
    "list.json",
    "deep.toml",
    "wrong.toml",
    "folder.npy",
    "folder.npz",
    "loop.npy",
    "loop.npz",
    "dangling.npy",
    "fifo.npy",
    "fifo.json",
    "socket.npy",
    "zero-link.npy",
    "zero-link.mtx",
    "/dev/zero",
    "/dev/null",
    "/dev/stdin",
    "A.npy/B.npy",
    "no/such/folder/U.npy",
    "no/such/folder/U.html",
    "\x1b[31m\nA.npy",
    "\udcff.npy",
    "n" * 300 + ".npy",
]
SUFFIXES = (".npy", ".png", ".csv", ".json", ".h", ".tex", ".html", ".toml")
OUTPUTS = [f"{folder}out{suffix}" for folder in ("", "no/") for suffix in SUFFIXES]


def make_files(folder: Path) -> None:
    """Write a valid matrix, a valid study and every file of BROKEN."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    noise = np.random.default_rng(1).bytes(3000)
    np.save("A.npy", A)
    np.savez("a.npz", a=A)
    (folder / "a.mtx").write_text("%%MatrixMarket matrix array real general\n2 1\n1\n2\n")
    header = json.dumps({"w": {"dtype": "F64", "shape": [6, 4], "data_offsets": [0, 192]}})
    packed = len(header).to_bytes(8, "little") + header.encode() + A.tobytes()
    (folder / "a.safetensors").write_bytes(packed)
    for kind in ("npy", "npz", "mtx", "safetensors", "json", "toml", "csv"):
        (folder / f"empty.{kind}").touch()
        (folder / f"noise.{kind}").write_bytes(noise)
        good = folder / f"a.{kind}"
        whole = (folder / "A.npy" if kind == "npy" else good).read_bytes() if good.exists() else b""
        (folder / f"cut.{kind}").write_bytes(whole[: len(whole) * 2 // 3])
    start = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': "
    (folder / "huge.npy").write_bytes((start + b"(10000000, 10000000), }").ljust(127) + b"\n")
    np.save("pickle.npy", np.array([[None]]), allow_pickle=True)
    np.save("words.npy", np.array([["a"]]))
    np.save("vector.npy", A[0])
    np.save("scalar.npy", np.array(1.0))
    np.save("zero.npy", np.zeros((0, 3)))
    np.save("stack.npy", np.stack([A, A]))
    np.save("nan.npy", np.full((2, 2), np.nan))
    with zipfile.ZipFile("text.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
        archive.write("A.npy", "a.npy")
    with zipfile.ZipFile("none.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", (start + b"(4000000000, 1), }").ljust(127) + b"\n" + bytes(10**6))
    scipy.sparse.save_npz("sparse.npz", scipy.sparse.csr_array(np.eye(3)))
    (folder / "long.mtx").write_bytes(b"%%MatrixMarket " + bytes(10**6))
    (folder / "deep.json").write_text("[" * 10**5)
    (folder / "digits.json").write_text(f'{{"schema": {"9" * 5000}}}')
    (folder / "nan.json").write_text('{"schema": NaN}')
    (folder / "twice.json").write_text('{"schema": 1, "schema": 2}')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "deep.toml").write_text("a = " + "[" * 10**5)
    with resources.as_file(resources.files("polarlib").joinpath("data/costs.toml")) as costs:
        shutil.copy(costs, folder / "costs.toml")
    (folder / "wrong.toml").write_text(f"[numpy.cpu]\nsizes = [{'9' * 400}]\nmeasured = 1\n")
    for name in ("folder.npy", "folder.npz"):
        (folder / name).mkdir()
    for name in ("loop.npy", "loop.npz"):
        (folder / name).symlink_to(name)
    (folder / "dangling.npy").symlink_to("nowhere/b.npy")
    for name in ("zero-link.npy", "zero-link.mtx"):
        (folder / name).symlink_to("/dev/zero")
    os.mkfifo("fifo.npy")
    os.mkfifo("fifo.json")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind("socket.npy")
    make_study(folder / "study")


def make_study(folder: Path, **more: object) -> None:
    study = {"study": "s", "title": "t", "source": "", "command": "", "quick": True}
    study |= {"versions": {}, "claims": [], "figures": [], "tables": [], "plots": [], "notes": []}
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(study | more))


def calls() -> list[list[str]]:
    """Every option of every command with every value, and some calls of other kinds."""
    assert set(COMMAND.commands) == set(BASE)
    made = [[word] for word in WORDS[2:]]
    for name, command in COMMAND.commands.items():
        base = BASE[name]
        for param in command.params:
            if param.name == "as_json":
                continue
            option = max(param.opts, key=len) if param.param_type_name == "option" else None
            rest = base
            if option is None:
                rest = base[1:] if base and not base[0].startswith("-") else base
            else:
                rest = without(base, set(param.opts))
            if name == "design":
                rest = without(DESIGNS.get(option, rest), set(param.opts))
            if option == "--plots":
                rest = [word for word in rest if word != "--no-plots"]
            if getattr(param, "is_flag", False):
                made += [[name, *base, option], [name, *base, f"{option}=x"]]
                continue
            for value in [*WORDS, *BROKEN, *OUTPUTS]:
                given = [value] if option is None else [option, value]
                made.append([name, *rest, *given])
        made += [[name, *base, word] for word in ("--bogus", "--json=1", "-", "extra")]
        made += [[name, "--help"], [name] if name not in ("bench", "compare") else [name, ""]]
    return made


def without(base: list[str], options: set[str]) -> list[str]:
    """Leave an option and its value out."""
    kept: list[str] = []
    skip = False
    for word in base:
        if skip:
            skip = False
        elif word in options:
            skip = True
        else:
            kept.append(word)
    return kept


@contextlib.contextmanager
def watched():
    """Fail where a call hangs, on systems that have alarms."""

    def fail(number, frame):
        raise AssertionError(f"hangs for {HANGS} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


COMMAND = typer.main.get_command(cli.app)


def invoke(args: list[str]) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        COMMAND.main(args, prog_name="polarlib")
    return ended.value.code, out.getvalue(), err.getvalue()


def state(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            facts = os.lstat(os.path.join(root, name))
            found[os.path.join(root, name)] = (facts.st_mtime_ns, facts.st_size)
    return found


def check(folder: Path, args: list[str]) -> int:
    """Make a call, look at everything that it leaves, and remove what it wrote."""
    before = state(folder)
    begun = time.thread_time()
    with watched():
        code, out, err = invoke(args)
    assert time.thread_time() - begun < SECONDS
    assert code in (0, 1, 2), err
    assert "Traceback" not in out + err
    assert (out + err).replace("\n", "").isprintable()
    if code:
        assert err.startswith("polarlib: ")
        assert err.count("\n") == 1
        assert 20 < len(err) < console.LONGEST + 40
        assert "None" not in err or "None" in args
    else:
        assert err == ""
    if "--json" in args and "--help" not in args:
        if code == 2:
            assert out == ""
        else:
            json.loads(out)
    after = state(folder)
    assert not [name for name in after if name.endswith(".tmp")]
    if code == 2:
        assert after == before
    new = [Path(name) for name in after if name not in before]
    for path in sorted(new, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    changed = {name for name, facts in before.items() if after.get(name) != facts}
    assert changed <= {str(folder / word) for word in args}  # overwritten, as outputs are
    if changed:
        shutil.rmtree(folder)
        make_files(folder)
    return code


@pytest.fixture
def here(tmp_path, monkeypatch):
    if not hasattr(os, "mkfifo"):
        pytest.skip("the system has no pipes with names")
    for name in ("COLUMNS", "POLARLIB_TRACEBACK", "POLARLIB_COSTS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(bench, "KERNEL_BURST", 0)
    # Of compare, which would take seconds.
    monkeypatch.setattr(everything, "METHODS", ("svd",))
    monkeypatch.setattr(polarlib, "schedules", lambda target=None: ("jordan", "polar_express"))
    for module in (compare, everything):
        monkeypatch.setattr(module, "TIMED", 1)
        monkeypatch.setattr(module, "TIMED_SECONDS", 0)
    make_files(tmp_path)
    return tmp_path


def many(here, chosen):
    counts = dict.fromkeys((0, 1, 2), 0)
    for i, args in enumerate(chosen):
        try:
            counts[check(here, args + ["--json"] * (i % 2))] += 1
        except BaseException as error:
            error.add_note(f"polarlib {args!r:.500}")
            raise
    sys.stdout.write(f"{len(chosen)} calls of the command line, by exit code: {counts}\n")
    assert counts[2] > len(chosen) / 2


def test_valid_calls_are_valid(here):
    for name, base in BASE.items():
        if name not in ("compare", "info", "bench"):
            assert check(here, [name, *base]) == check(here, [name, *base, "--json"]) == 0


def test_some_wrong_calls(here):
    quick = [args for args in calls() if args[0] not in ("compare", "bench", "info")]
    chosen = random.Random(0).sample(quick, 150)
    many(here, chosen)


@pytest.mark.slow
def test_every_wrong_call(here):
    many(here, calls())
