"""Public functions on arrays without entries: a result as announced, or one sentence.

Meta and fake tensors, and what torch and JAX record for arrays of other entries: no function reads
a number that is not there, and none leaves an error of the library.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_fuzz
from conftest import library

import polarlib
from polarlib import norms

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and JAX warn while they record

HERE = Path(polarlib.__file__).parent
PRECISIONS = ("bfloat16", "float16", "tf32", "float64", "float8_e4m3", "float8_e5m2")
NORMS = {
    "nuclear": norms.nuclear,
    "frobenius": norms.frobenius,
    "ky_fan(2)": lambda: norms.ky_fan(2),
    "fanion(2)": lambda: norms.fanion(2),
    "f_fanion(2)": lambda: norms.f_fanion(2, 0.5),
    "f_muon": lambda: norms.f_muon(0.5),
    "s_fanion": lambda: norms.s_fanion(2, 0.5, 0.5),
    "lp(3)": lambda: norms.lp(3),
    "schatten(3)": lambda: norms.schatten(3),
    "induced(1, 2)": lambda: norms.induced(1, 2),
    "spectral(polar)": lambda: norms.spectral(polar="polar_express"),
    "2 * spectral": lambda: 2 * norms.spectral(),
}
Call = tuple[Callable[..., Any], dict[str, Any]]


def is_matrix(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.ndim >= 2


def converted(value: Any, convert: Callable[[np.ndarray], Any]) -> Any:
    """The arguments of a call with their matrices converted, those in lists too."""
    if isinstance(value, dict):
        return {name: converted(v, convert) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(converted(v, convert) for v in value)
    return convert(value) if is_matrix(value) else value


def members(value: Any) -> Iterator[Any]:
    """Arrays in a result, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for v in value:
            yield from members(v)
    elif hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
        yield value


@functools.cache
def calls() -> dict[str, Call]:
    """Calls of every public function of matrices, and of options that have code of their own."""
    interface = test_fuzz.interface()
    apart = ("polarlib.files", "polarlib.testing", "polarlib.plot")
    rows = {name: row() for name, row in test_fuzz.ROWS.items() if not name.startswith(apart)}
    found: dict[str, Call] = {
        name: ((lambda f=interface[name], **given: f.run(given)), given)
        for name, given in rows.items()
        if any(is_matrix(x) or (isinstance(x, list) and is_matrix(x[0])) for x in given.values())
    }
    a, s = {"a": test_fuzz.A}, {"a": test_fuzz.S}
    for name, make in NORMS.items():
        for method in ("__call__", "dual_norm", "lmo", "sharp", "project"):
            call = lambda a, make=make, method=method: getattr(make(), method)(a)  # noqa: E731
            found[f"{name}.{method}"] = call, a
    # Published sets differ in numbers alone: one of each degree and normalisation, and the longest.
    sets = ("polar_express", "cubic5", "turbo_muon", "inverse_sqrt_nv", "simple_quintic")
    methods = [name for name in polarlib.methods() if name not in polarlib.schedules()]
    for name in (*methods, "halley", *sets):
        found[f"polar, {name}"] = functools.partial(polarlib.polar, method=name), a
    for name in ("svd", "lanczos", "arpack", "randomized", "block_krylov"):
        found[f"top_singular, {name}"] = (
            functools.partial(polarlib.top_singular, k=2, method=name),
            a,
        )
    for name in PRECISIONS:
        for form in ("plain", "gram"):
            call = lambda a, **how: polarlib.orthogonalize(a, **how)  # noqa: E731
            found[f"orthogonalize, {name}, {form}"] = (
                functools.partial(call, precision=name, form=form),
                a,
            )
    pair = {"a": test_fuzz.A, "b": 2 * test_fuzz.A}
    found["polar, hint"] = functools.partial(polarlib.polar, sigma_min=0.1), a
    found["polar, callback"] = functools.partial(polarlib.polar, callback=print), a
    found["procrustes, rotation"] = functools.partial(polarlib.procrustes, rotation=True), pair
    found["inverse_root, start"] = (
        lambda a, start: polarlib.inverse_root(a, 2, start=start),
        {**s, "start": np.eye(3)},
    )
    found["orthogonalize, out"] = lambda a, b: polarlib.orthogonalize(a, out=b), pair
    return found


# Larger than closed forms serve, and stacks.
VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "small": np.array,
    "stack": lambda x: np.stack([x, 2 * x]),
    "large": lambda x: np.kron(np.eye(12), x) + 0.1,
}


def cases(variant: str) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    for name, (f, given) in calls().items():
        yield name, f, converted(given, VARIANTS[variant])


def tried(f: Callable[[], Any]) -> tuple[Any, str]:
    """The result of a call, and the message of an error that is a sentence of ours or "".

    What is neither becomes an AssertionError with the place in polarlib.
    """
    try:
        return f(), ""
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            frames = traceback.extract_tb(cause.__traceback__)
            ours = bool(frames) and HERE in Path(frames[-1].filename).parents
            message = str(cause)
            if ours and isinstance(cause, TypeError | ValueError | NotImplementedError):
                assert "\n" not in message, message
                return None, message
            if "polarlib." in message and "leave fullgraph" in message:
                return None, message
            cause = cause.__cause__ or cause.__context__
        frames = [f for f in traceback.extract_tb(error.__traceback__) if str(HERE) in f.filename]
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "outside of polarlib"
        raise AssertionError(f"{place}: {type(error).__name__}: {error}") from error


def check(runs: Iterator[tuple[str, Callable[[], Any]]]) -> dict[str, Any]:
    """Results by name of call; all calls that left anything but a sentence, in one failure."""
    results, wrong = {}, []
    for name, run in runs:
        try:
            result, message = tried(run)
        except AssertionError as error:
            wrong.append(f"{name}: {' '.join(str(error).split())[:300]}")
            continue
        if message:
            # The backstop of arrays/ cannot name the function.
            if message.startswith("this computation"):
                wrong.append(f"{name}: names no function: {message}")
        else:
            results[name] = result
    assert not wrong, "\n".join(["", *wrong])
    return results


def described(result: Any, device: Any = None) -> list[tuple[Any, ...]]:
    return [
        (tuple(x.shape), x.dtype) if device is None else (tuple(x.shape), x.dtype, x.device)
        for x in members(result)
        if type(x) is not np.ndarray  # figures of polar, which are numbers of the host
    ]


def check_announced(results: dict[str, Any], variant: str, convert: Any, device: Any) -> None:
    """Shapes and dtypes are those of results of arrays with entries; the device is given."""
    for name, f, given in cases(variant):
        if name in results:
            wanted = described(f(**converted(given, convert)))
            got = described(results[name], device)
            assert got == [(*w, device) for w in wanted], name


# -- torch -----------------------------------------------------------------------------------------


def tensor(torch: Any, dtype: Any) -> Callable[[np.ndarray], Any]:
    return lambda a: torch.tensor(a, dtype=dtype)


DTYPES = [
    ("small", "float32"),
    ("stack", "float32"),
    ("large", "float64"),
    ("small", "complex64"),
    ("large", "bfloat16"),
]
each_variant = pytest.mark.parametrize(("variant", "dtype"), DTYPES)


@pytest.mark.thinned(5)
@each_variant
def test_meta_tensors(torch, variant, dtype):
    convert = tensor(torch, getattr(torch, dtype))
    results = check(
        (name, lambda f=f, given=given: f(**converted(given, lambda a: convert(a).to("meta"))))
        for name, f, given in cases(variant)
    )
    assert "polarlib.orthogonalize" in results
    check_announced(results, variant, convert, torch.device("meta"))


@pytest.mark.thinned(5)
@each_variant
@pytest.mark.parametrize("within", [True, False])
def test_fake_tensors(torch, variant, dtype, within):
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    convert = tensor(torch, getattr(torch, dtype))

    def run(f: Callable[..., Any], given: dict[str, Any]) -> Any:
        mode = fake_tensor.FakeTensorMode()
        fakes = converted(given, lambda a: mode.from_tensor(convert(a)))
        if not within:
            return f(**fakes)
        with mode:
            return f(**fakes)

    results = check((n, functools.partial(run, f, given)) for n, f, given in cases(variant))
    assert "polarlib.orthogonalize" in results
    check_announced(results, variant, convert, torch.device("cpu"))


def test_fake_tensors_on_a_device(torch):
    """Of torch's CUDA build, which needs no device for them."""
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    if not torch.backends.cuda.is_built():
        pytest.skip("torch was built without CUDA")
    convert = tensor(torch, torch.float32)

    def run(f: Callable[..., Any], given: dict[str, Any]) -> Any:
        with fake_tensor.FakeTensorMode():
            return f(**converted(given, lambda a: torch.empty(a.shape, device="cuda")))

    results = check((n, functools.partial(run, f, given)) for n, f, given in cases("large"))
    assert "polarlib.orthogonalize" in results
    check_announced(results, "large", convert, torch.device("cuda", 0))


def of_tensors(torch: Any, f: Callable[..., Any], given: dict[str, Any], dtype: Any) -> Any:
    """The call as a function from a tuple of tensors to one, and its tensors."""
    tensors: list[Any] = []
    converted(given, lambda a: tensors.append(torch.tensor(a, dtype=dtype)))

    def run(*tensors: Any) -> Any:
        left = iter(tensors)
        result = f(**converted(given, lambda a: next(left)))
        return tuple(x for x in members(result) if isinstance(x, torch.Tensor))

    return run, tuple(tensors)


def exported(torch: Any, f: Any, tensors: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, *tensors: Any) -> Any:
            return f(*tensors)

    torch.export.export(Model(), tensors, strict=False)


RECORDERS: dict[str, Callable[..., Any]] = {
    "jit.trace": lambda torch, f, x: torch.jit.trace(f, x, check_trace=False),
    "make_fx": lambda torch, f, x: torch.fx.experimental.proxy_tensor.make_fx(
        f, tracing_mode="fake"
    )(*x),
    "export": exported,
    "compile": lambda torch, f, x: torch.compile(f, backend="eager", fullgraph=True)(*x),
}


# The others take a minute together.
@pytest.mark.parametrize(
    ("recorder", "variant", "dtype"),
    [
        ("jit.trace", "small", "float32"),
        *(
            pytest.param(name, *case, marks=pytest.mark.slow)
            for name in RECORDERS
            for case in (("small", "float32"), ("large", "complex64"))
            if (name, *case) != ("jit.trace", "small", "float32")
        ),
    ],
)
def test_what_torch_records(torch, recorder, variant, dtype):
    pytest.importorskip("torch.fx.experimental.proxy_tensor")

    def run(f: Callable[..., Any], given: dict[str, Any]) -> Any:
        torch._dynamo.reset()
        RECORDERS[recorder](torch, *of_tensors(torch, f, given, getattr(torch, dtype)))

    results = check((n, functools.partial(run, f, given)) for n, f, given in cases(variant))
    assert "polarlib.orthogonalize" in results


# -- JAX -------------------------------------------------------------------------------------------


@pytest.mark.thinned(5)
@pytest.mark.parametrize("transformation", ["jit", "vmap"])
@each_variant
def test_what_jax_traces(transformation, variant, dtype):
    jax = library("jax") and pytest.importorskip("jax")

    def run(f: Callable[..., Any], given: dict[str, Any]) -> Any:
        arrays: list[Any] = []
        converted(given, lambda a: arrays.append(jax.numpy.asarray(a, dtype=dtype)))

        def traced(*arrays: Any) -> Any:
            left = iter(arrays)
            result = f(**converted(given, lambda a: next(left)))
            return tuple(x for x in members(result) if isinstance(x, jax.Array))

        if transformation == "jit":
            return jax.eval_shape(traced, *arrays)
        jax.eval_shape(jax.vmap(traced), *(x[None] for x in arrays))
        return ()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check((n, functools.partial(run, f, given)) for n, f, given in cases(variant))
    for name in ("inverse_root", "top_singular", "nearest_rotation", "procrustes", "sqrtm_psd"):
        assert f"polarlib.{name}" in results or dtype == "complex64"


# -- two devices -----------------------------------------------------------------------------------


# Each of its matrices is a call of its own.
APART = ("polarlib.orthogonalize_all",)


def check_two_devices(places: list[Callable[[np.ndarray], Any]], names: list[str]) -> None:
    """Each call with one of its matrices elsewhere raises an error that names both devices."""
    count = 0
    for name, f, given in cases("small"):
        matrices: list[np.ndarray] = []
        converted(given, matrices.append)
        if len(matrices) == 1 or name in APART or name.endswith("presgdw_step"):
            continue
        for odd in range(len(matrices)):
            order = iter(range(len(matrices)))
            elsewhere = converted(given, lambda a, k=order, i=odd: places[next(k) == i](a))
            try:
                f(**elsewhere)
            except ValueError as error:
                message = str(error)
            else:
                raise AssertionError(f"{name}: not refused")
            assert " must be on one device, got " in message, (name, message)
            assert all(device in message for device in names), (name, message)
            count += 1
    assert count > 20, count


def test_two_devices_of_torch(torch):
    places = [torch.tensor, lambda a: torch.tensor(a, device="meta")]
    check_two_devices(places, ["cpu", "meta"])
    x = torch.ones(4, 3)
    with pytest.raises(ValueError, match="g and out must be on one device, got cpu and meta"):
        polarlib.orthogonalize(x, out=x.to("meta"))
    with pytest.raises(ValueError, match=r"a and out\[1\] must be on one device"):
        polarlib.polar(x, out=(torch.empty(4, 3), torch.empty(3, 3, device="meta")))
    zero = x.to("cpu:0")  # the same device by another name
    assert polarlib.updates.ema(x, zero, 0.5).device.type == "cpu"


def of_two_devices() -> None:
    """Run in a process of its own: JAX reads its number of devices once."""
    import jax

    jax.config.update("jax_enable_x64", True)
    first, second = jax.devices()

    def put(device: Any) -> Callable[[np.ndarray], Any]:
        return lambda a: jax.device_put(a, device)

    several = ("orthogonalize", "polar", "procrustes", "inverse_root", "norms.random_spectrum")
    results = {
        name: f(**converted(given, put(second)))
        for name, f, given in cases("small")
        if name.removeprefix("polarlib.") in several
    }
    assert len(results) == len(several)
    for name, result in results.items():
        for x in members(result):
            assert type(x) is np.ndarray or x.devices() == {second}, name
    check_two_devices([put(first), put(second)], [str(first), str(second)])


@pytest.mark.slow  # JAX compiles in a new process
def test_two_devices_of_jax():
    library("jax")
    code = (
        "import warnings; warnings.simplefilter('ignore'); "
        "import test_tracing; test_tracing.of_two_devices()"
    )
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent, HERE.parent)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PYTHONPATH": path, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
