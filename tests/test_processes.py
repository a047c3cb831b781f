"""Pickles and copies, other processes, other platforms, and the state that modules keep."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import verbs
from conftest import library

import polarlib
from polarlib import ConvergenceWarning, ScheduleWarning, Status, design, norms
from polarlib.arrays import cupy_device
from polarlib.arrays.formats import FORMATS
from polarlib.arrays.ops import Ops, ops_of
from polarlib.norms.base import Norm
from polarlib.norms.topk import triplets
from polarlib.uses.division import division

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(polarlib.__file__).parent
LIMIT = 300  # seconds: for what would otherwise hang


def modules() -> list[Any]:
    """All modules of the package, but the one that runs the program."""
    names = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "polarlib.")]
    return [importlib.import_module(n) for n in names if n != "polarlib.__main__"]


# -- pickles and copies -------------------------------------------------------------------------

# Classes that no public function returns: arithmetic, and what methods hand to each other.
INTERNAL = {
    "History",
    "Progress",
    "Method",
    "Pytree",
    *("Diagonal", "DualOps", "Rounded", "Kernels", "Dual", "Equation"),
    *("Decomposition", "Evidence", "Householder", "Kind", "Lift", "Lifted", "Rational", "Run"),
    *("Adaptive", "Choice", "Rule"),
    *("Coefficients", "Differences", "How", "Map"),  # of derivatives
    *("Bare", "Plan", "Problem", "Rounding", "Sketch", "Step", "Target"),
    *("Arithmetic", "Bound", "Library", "Normaliser", "NumpyKernels", "Wrapper"),
    *("Heuristic", "Layout", "Product"),  # of a call of cublasLt
    *("MatrixModel", "NotPositiveError"),  # of certificates
    "View",  # of a drawing
    "Bar",  # of progress in a terminal
    *("JaxMesh", "Messages", "Piece", "Rows", "TorchMesh"),  # of matrices on a mesh
    *("ContainedMatrix", "FileMatrix", "Outcome", "ZarrTarget"),  # of polarlib polar --memory
    *("Constraints", "CostModel", "MachineCosts", "Prices", "Search"),  # of searches of design
    *("Entered", "Later", "Options"),  # what a call hands from stage to stage
}


def kernel(norm: Norm) -> Any:
    """What a norm takes."""
    x = verbs.gaussian(4, 3)
    if isinstance(norm, type(norms.convolution(norms.spectral()))):
        return verbs.gaussian(4, 3, 2, 2)
    return [x, x] if hasattr(norm, "norms") else x


def norms_of_every_kind() -> dict[str, Norm]:
    """Norms by what makes them."""
    found = {
        "spectral": norms.spectral(),
        "by a schedule": norms.spectral(polar=polarlib.schedule("jordan")),
        "by a name": norms.rms_to_rms(4, 3, polar="polar_express"),
        "by a function": norms.spectral(polar=polarlib.nearest_orthogonal),
        "nuclear": norms.nuclear(),
        "frobenius": norms.frobenius(),
        "schatten": norms.schatten(3),
        "ky_fan": norms.ky_fan(2, 3),
        "fanion": norms.fanion(2),
        "f_fanion": norms.f_fanion(2, 0.5),
        "s_fanion": norms.s_fanion(2, 0.5, 0.1),
        "lp": norms.lp(1.5),
        "induced": norms.induced(1, 2),
        "sum": norms.minkowski_sum([(1.0, norms.spectral()), (0.5, norms.frobenius())]),
        "convolution": norms.convolution(norms.spectral()),
        "modular": norms.modular([norms.spectral(), norms.lp(1)], [1.0, 2.0]),
    }
    others = {f"dual of {name}": n.dual() for name, n in found.items()}
    return found | others | {f"2 {name}": 2.0 * n for name, n in found.items()}


def examples() -> dict[str, Any]:
    """An object of every class that a user meets."""
    s = polarlib.schedule("jordan")
    assert s.slope > 0  # cached in it
    spectrum = design.marchenko_pastur(8, 4)
    return {
        "schedule": s,
        "rational": design.zolotarev(2, 1e-3),
        "certificate": s.certify(),
        "comparison": s.compare(polarlib.schedule("you")),
        "result": polarlib.polar(verbs.gaussian(2, 4, 3)),
        "alignment": polarlib.align(verbs.gaussian(4, 3), verbs.gaussian(4, 3)),
        "communication": polarlib.communication((8, 4), layout="rows", devices=2),
        "trace": polarlib.measure(verbs.gaussian(4, 3), s),
        "status": Status.CONVERGED,
        "warnings": (
            ConvergenceWarning("a"),
            ScheduleWarning("b"),
            design.doubles.BeyondDoublesError("c"),
            cupy_device.LibraryNotFound("d"),
        ),
        "format": FORMATS["bfloat16"],
        "best": design.best(5, 0.1),
        "digits": design.best(5, 0.1, digits=50),
        "spectrum": spectrum,
        "choices": design.frontier(1e-1, 5),
        "fingerprint": design.fingerprint(design.minimax(5, 0.1).steps[0]),
        "triplets": triplets(verbs.gaussian(5, 4), 2),
        "shapes": polarlib.generalized_procrustes(np.ones((2, 3, 2))),
        "singular": polarlib.top_singular(verbs.gaussian(5, 4), 2),
        "decompositions": (
            polarlib.svd_polar(verbs.gaussian(5, 4)),
            polarlib.eigh_polar(np.ones((3, 3))),
            division(np.diag([2.0, 1.0]) + 1, ops_of(np.eye(2)), 1),
        ),
        "module": norms.compose(norms.layer(norms.spectral()), norms.bond(0.5)),
        "mup": norms.mup("hidden"),
        **norms_of_every_kind(),
    }


def parts(value: Any) -> Iterator[Any]:
    """An object and what it holds, down to plain numbers."""
    yield value
    if isinstance(value, tuple | list):
        for v in value:
            yield from parts(v)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from parts(getattr(value, name))


def result(f: Any, x: Any) -> Any:
    """What a function gives, or why not."""
    try:
        return verbs.bits(f(x))
    except NotImplementedError as error:
        return str(error)


def behaviour(value: Any) -> Any:
    """What an object does."""
    if isinstance(value, Norm):
        x = kernel(value)
        return [result(f, x) for f in (value, value.dual_norm, value.lmo)], repr(value)
    if isinstance(value, polarlib.Schedule):
        return value, value(0.3), value.error(), value.slope, value.image(), repr(value)
    return verbs.bits(value), repr(value)


def copies(value: Any) -> Iterator[tuple[str, Any]]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f"protocol {protocol}", pickle.loads(pickle.dumps(value, protocol))
    yield "copy", copy.copy(value)
    yield "deepcopy", copy.deepcopy(value)


def test_every_public_class_has_an_example():
    known = [type(part) for value in examples().values() for part in parts(value)]
    classes = {
        c
        for module in modules()
        for c in vars(module).values()
        if inspect.isclass(c) and c.__module__ == module.__name__ and c.__name__[0] != "_"
    }
    assert {c.__name__ for c in classes} >= INTERNAL
    public = [c for c in classes if c.__name__ not in INTERNAL and not issubclass(c, Ops)]
    assert [c for c in public if not any(issubclass(k, c) for k in known)] == []


def test_pickles_and_copies_behave_as_their_originals():
    for name, value in examples().items():
        wanted = behaviour(value)
        for how, other in copies(value):
            assert type(other) is type(value), (name, how)
            assert behaviour(other) == wanted, (name, how)


@pytest.mark.parametrize("name", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_results_of_other_libraries(name):
    lib = library(name)
    a = lib.asarray(verbs.gaussian(5, 3))
    for value in (polarlib.polar(a), polarlib.top_singular(a, 2)):
        wanted = verbs.bits(value)
        for how, other in copies(value):
            assert verbs.bits(other) == wanted, how


def test_functions_that_pickle_cannot_name_are_refused():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(norms.spectral(polar=lambda g: g))


@pytest.mark.slow  # matplotlib
def test_pictures():
    import matplotlib

    from polarlib import plot

    before = dict(matplotlib.rcParams)  # the backend among them
    ax = plot.polynomial(polarlib.schedule("jordan"))
    lines = [line.get_xydata() for line in ax.get_lines()]
    other = pickle.loads(pickle.dumps(ax))
    np.testing.assert_equal([line.get_xydata() for line in other.get_lines()], lines)
    assert dict(matplotlib.rcParams) == before


# -- processes ----------------------------------------------------------------------------------

# In a file, as spawn imports it again. The pool of BLAS has been used when a process begins.
PROGRAM = """
import multiprocessing
import os
import sys
import traceback
import warnings

sys.path.insert(0, sys.argv[1])
import numpy as np

import polarlib
from polarlib import design


def work(seed):
    a = np.random.default_rng(seed).standard_normal((120, 120))
    u, h = polarlib.polar(a)
    q = polarlib.orthogonalize(a)
    s = design.greedy(1e-2, [5, 5])
    return u.tobytes(), h.tobytes(), q.tobytes(), s.steps


def in_daemon(start, seed):
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe()
    process = context.Process(target=send, args=(theirs, seed), daemon=True)
    process.start()
    assert ours.poll(120), "hangs"
    found = ours.recv()
    process.join(60)
    assert process.exitcode == 0
    return found


def send(pipe, seed):
    pipe.send(work(seed))
    pipe.close()


def forked(wanted):
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    try:
        assert work(1) == wanted
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    if sys.version_info >= (3, 12):  # of the pool of BLAS
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    wanted = work(1)
    for start in sys.argv[2:]:
        if start == "os.fork":
            forked(wanted)
            continue
        assert in_daemon(start, 1) == wanted, start
        with multiprocessing.get_context(start).Pool(2) as pool:
            results = pool.map_async(work, [1, 2, 1]).get(120)
        assert results[0] == results[2] == wanted != results[1], start
    print("done")
"""


def run(*arguments: str, **environment: str) -> str:
    """Output of another interpreter, whose BLAS has two threads."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | threads | environment,
        timeout=LIMIT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "start",
    [
        "os.fork",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("fork", "spawn", "forkserver")),
    ],
)
def test_results_in_other_processes(start, tmp_path):
    """After the threads of BLAS have worked in the parent; daemons and pools."""
    if not hasattr(os, "fork") and start != "spawn":
        pytest.skip("this system starts processes by spawn alone")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, "utf-8")
    assert run(str(program), str(ROOT), start) == "done"


CHECKS = """
import sys
sys.path[:0] = sys.argv[1:]
import verbs
calls = {**verbs.on_arrays(), **verbs.on_host()}
names = ["polar.auto", "orthogonalize.plain", "design.greedy", "design.best.50", "certify"]
for name in names:
    first = verbs.bits(calls[name]())
    if first != verbs.bits(calls[name]()):
        raise SystemExit(name)
try:
    calls["polar.auto"].func([1.0])
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "flags",
    [
        ("-I", "-OO", "-W", "error"),
        *(pytest.param(f, marks=pytest.mark.slow) for f in [("-E",), ("-O",), ("-X", "dev")]),
    ],
    ids=" ".join,
)
def test_flags_of_the_interpreter(flags):
    """Without assertions and docstrings, with warnings as errors, without the environment."""
    found = run(*flags, "-c", CHECKS, str(ROOT), str(ROOT / "tests"))
    assert found.startswith("a must be a matrix or a stack of matrices, got shape (1,)")


# -- platforms ----------------------------------------------------------------------------------

# What Windows, macOS, or another build of SciPy does not have.
HIDE = """
import os, signal, sys
root = sys.argv[1]
sys.path[:0] = [root, root + "/tests"]
import numpy as np, scipy.linalg, threadpoolctl
np.linalg._umath_linalg.__file__ = "/nowhere"
for name in ("scipy.linalg.cython_blas", "scipy.linalg.cython_lapack", "resource", "pwd"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "fork", "getuid", "fchmod", "fdatasync"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGPIPE", "SIGALRM", "SIGQUIT"):
    if hasattr(signal, name):
        delattr(signal, name)
def get_terminal_size(*_):
    raise OSError("no terminal")
os.get_terminal_size = get_terminal_size
threadpoolctl.threadpool_info = lambda: []
class Absent:
    def find_spec(self, name, *_):
        if name in ("torch", "jax", "dask", "cupy"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
"""
ON_HIDDEN = """
import verbs, polarlib
from polarlib import cli, testing
from polarlib.arrays import routines
from typer.testing import CliRunner
assert routines.source() is None
for n in (3, 70):
    for a in (verbs.gaussian(n + 40, n), testing.graded(n, 1e-10)):
        for method in ("auto", "hybrid", "qdwh", "structured"):
            u, h = polarlib.polar(a, method=method)
            testing.assert_polar(a, u, h)
x = verbs.gaussian(80, 60)
testing.assert_unitary_factor(x, polarlib.nearest_orthogonal(x))
assert polarlib.top_singular(x, 3)[1].shape == (3,)
folder = sys.argv[2]
np.save(folder + "/a.npy", x)
for command in (["info", "--json"], ["polar", folder + "/a.npy", "-o", folder + "/u.npy"]):
    found = CliRunner().invoke(cli.app, command)
    assert found.exit_code == 0, found.output
print("done")
"""


def test_without_routines_of_lapack_and_parts_of_the_system(tmp_path):
    arguments = "-W", "error", "-c", HIDE + ON_HIDDEN, str(ROOT), str(tmp_path)
    assert run(*arguments, OPENBLAS_NUM_THREADS="1") == "done"


@pytest.mark.slow  # another run of tests
def test_contract_without_routines_of_lapack(tmp_path):
    code = (
        "import pytest\n"
        "names = [root + f'/tests/methods/test_{name}.py' for name in ('contract', 'polar')]\n"
        "which = '(hybrid or qdwh or auto or svd) and numpy'\n"
        "sys.exit(pytest.main(['-n0', '-q', '-p', 'no:cacheprovider', '-k', which, *names]))\n"
    )
    assert "passed" in run("-c", HIDE + code, str(ROOT))


def test_names_of_files_on_every_system():
    """Some file systems do not tell cases apart, and some names are devices."""
    folders = [
        ROOT / name for name in ("polarlib", "tests", "benchmarks", "docs", "analysis", "examples")
    ]
    paths = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.rglob("*")
        if not {"__pycache__", "_build", "backreferences"} & set(path.parts)
    ]
    assert len({p.lower() for p in paths}) == len(paths)
    reserved = {"con", "prn", "aux", "nul"}
    for path in map(Path, paths):
        for part in path.parts:
            assert not set(part) & set('<>:"|?*\\\\'), path
            assert part.partition(".")[0].lower() not in reserved, path


def test_drive_letters_are_no_names_of_arrays():
    assert polarlib.files.split(r"C:\\data\\a.npz")[1] is None
    assert polarlib.files.split(r"C:\\data\\a.npz:head")[1] == "head"


def test_workflow_names_what_exists():
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if not workflow.exists():
        pytest.skip("the workflow is not installed")
    text = workflow.read_text("utf-8")
    assert all(f"{name}-latest" in text for name in ("ubuntu", "windows", "macos"))
    assert re.search(r'python: \["3.11", "3.12", "3.13"\]', text)
    asked = set(re.findall(r"nox -s (\w+)", text))
    asked |= set(re.search(r"session: \[(.*)\]", text)[1].split(", "))
    noxfile = (ROOT / "noxfile.py").read_text("utf-8")
    sessions = set(re.findall(r"^def (\w+)\(session", noxfile, re.M))
    parts = set(re.findall(r'"([^"]+)"', re.search(r"^FULL = \(.*?^\)$", noxfile, re.M | re.S)[0]))
    others = {name for name in parts if name.startswith("versions-")}  # other jobs run them
    assert {"tests"} | parts - others <= asked <= sessions
    assert parts - others < sessions
    assert "://" not in text


# -- the state of modules -----------------------------------------------------------------------


def caches() -> dict[str, Any]:
    """Functions that remember, by module and name."""
    return {
        f"{module.__name__}.{name}": value
        for module in modules()
        for name, value in vars(module).items()
        if hasattr(value, "cache_info") and value.__module__ == module.__name__
    }


# Tables that are filled once, under a lock, by file.
FILLED_UNDER_A_LOCK = {("torch_operator.py", "_defined")}


def test_nothing_is_written_to_modules():
    """Tables of modules are constants: no function assigns to them or to their entries."""
    writing = {
        "append",
        "add",
        "update",
        "setdefault",
        "pop",
        "clear",
        "extend",
        "insert",
        "remove",
    }
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        body = ast.parse(path.read_text("utf-8"), feature_version=(3, 11)).body
        inside = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        tables = {
            name.id
            for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        }
        for node in (n for definition in inside for n in ast.walk(definition)):
            if isinstance(node, ast.Global):
                wrong.append((path.name, "global", *node.names))
            elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(
                node.value, ast.Name
            ):
                stored = isinstance(node.ctx, ast.Store | ast.Del)
                called = isinstance(node, ast.Attribute) and node.attr in writing
                if (path.name, node.value.id) in FILLED_UNDER_A_LOCK:
                    continue
                if node.value.id in tables and (stored or called):
                    wrong.append((path.name, node.lineno, node.value.id))
    assert wrong == []


# Caches whose values are arrays, with arguments.
ARRAYS = {
    "polarlib.arrays.blas._below": (3,),
    "polarlib.arrays.blas._direction": (3, "d"),
    "polarlib.engine.adaptive._table": ((((1.0, 2.0),),),),
    "polarlib.engine.evidence._gaussian": (3, 2),
    "polarlib.uses.few_steps._series": (2,),
}
# Of any library, few of which have arrays that are read-only: used through read-only views.
PLACED = {"polarlib.arrays.functions._placed"}


def test_arrays_that_caches_keep_are_read_only():
    """Every thread gets the same one."""
    found = caches()
    given = {
        name
        for name, cache in found.items()
        if re.search(r"\b(Array|ndarray)$", str(inspect.signature(cache).return_annotation))
    }
    assert given == set(ARRAYS) | PLACED
    for name, arguments in ARRAYS.items():
        assert not found[name](*arguments).flags.writeable
