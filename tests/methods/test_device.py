"""Devices: what `polar` and its relatives read, move and launch there, and what comes out.

Nothing here needs a device. An arithmetic that is not of the host counts as one: that of
array_api_strict is none, and torch's is told so.
"""

from __future__ import annotations

import collections
import importlib
import pickle

import numpy as np
import pytest
from conftest import library, off_the_host

import polarlib
from polarlib.arrays import functions
from polarlib.arrays.ops import Ops, ops_of
from polarlib.engine.drive import NEWTON_SCHULZ, Step
from polarlib.result import Status
from polarlib.testing import with_singular_values

# Above what one SVD is taken for, and 64 columns, up to which the check is exact.
N = 70
# Operators that launch nothing, or are no operation of a device.
VIEWS = {"transpose", "view", "expand", "detach", "alias", "select", "slice", "unsqueeze", "t"}
VIEWS |= {"squeeze", "diagonal", "as_strided", "permute", "_unsafe_view", "empty", "unbind"}
VIEWS |= {"real", "imag", "_local_scalar_dense", "split", "_conj", "scalar_tensor"}


class Device:
    """A library whose arrays are taken for those of a device, and counts of its use."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lib = library(name)
        self.counts: collections.Counter[str] = collections.Counter()
        self.kind: type = Ops
        if name == "torch":
            self.kind = importlib.import_module("polarlib.arrays.torch_ops").TorchOps
            off_the_host(monkeypatch)
        if name == "jax":
            module = importlib.import_module("polarlib.arrays.jax_ops")
            self.kind = module.JaxOps
            monkeypatch.setattr(module, "on_cpu", lambda x: False)
        for method in ("to_host", "item", "from_host", "svd", "eigenvalues", "qr", "cholesky"):
            self._count(method, monkeypatch)
        for module in ("auto", "hybrid"):
            monkeypatch.setattr(
                importlib.import_module(f"polarlib._methods.{module}"), "on_cpu", lambda x: False
            )

    def _count(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        f = getattr(self.kind, name)

        def counted(ops, *args, **options):
            self.counts[name] += 1
            return f(ops, *args, **options)

        monkeypatch.setattr(self.kind, name, counted)

    def __call__(self, f, a: np.ndarray, **options):
        """Result of a function of an array there; the counts are those of this call."""
        x = self.lib.asarray(a)
        assert not ops_of(x).host
        self.counts.clear()
        return f(x, **options)

    @property
    def reads(self) -> int:
        return self.counts["to_host"] + self.counts["item"]


@pytest.fixture(params=["array_api_strict", "torch"])
def device(request, monkeypatch):
    return Device(request.param, monkeypatch)


@pytest.fixture(params=["array_api_strict", "torch", "jax"])
def any_device(request, monkeypatch):
    """JAX too, for a few tests: it compiles each operation for each shape."""
    return Device(request.param, monkeypatch)


def gaussian(*shape: int, dtype: str = "float64") -> np.ndarray:
    a = np.random.default_rng(7).standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * np.random.default_rng(8).standard_normal(shape)
    return a.astype(dtype)


SQUARES = {
    "gaussian": gaussian(N, N),
    "complex": gaussian(N, N, dtype="complex128"),
    "float32": gaussian(N, N, dtype="float32"),
    "near orthogonal": with_singular_values(np.linspace(0.99, 1.01, N)),
    "condition 1e12": with_singular_values(np.geomspace(1, 1e-12, N)),
    "rank N - 1": with_singular_values(np.r_[np.linspace(2, 1, N - 1), 0]),
    "rank N / 2": with_singular_values(np.r_[np.ones(N // 2), np.zeros(N - N // 2)]),
}
DEFICIENT = ("rank N - 1", "rank N / 2")


def check(result, a: np.ndarray, device: Device) -> None:
    """Compare with the result for a NumPy array."""
    expected = polarlib.polar(a, method="svd")
    u, h = map(device.lib.to_numpy, result)
    tol = 100 * max(a.shape[-2:]) ** 0.5 * float(np.finfo(a.dtype).eps)
    size = np.linalg.norm(a, axis=(-2, -1)).max() or 1.0
    assert result.converged
    np.testing.assert_allclose(h, expected.hermitian, atol=tol * size)
    np.testing.assert_allclose(u @ h, a, atol=tol * size)
    np.testing.assert_array_equal(result.rank, expected.rank)


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize("method", ["auto", "qdwh", "hybrid", "svd"])
def test_reads(device, method, name):
    """One for the entries, one or two for the bound, one for the check; one for an SVD after it."""
    a = SQUARES[name]
    result = device(polarlib.polar, a, method=method)
    fallen = method == "hybrid" and name in DEFICIENT  # it gives up, as it says
    assert device.reads <= (2 if method == "svd" else 5 if fallen else 4)
    assert (result.status is Status.FELL_BACK) == fallen
    # Nothing but the SVD decomposes: rank and definiteness come from Cholesky factors.
    assert device.counts["svd"] == (method == "svd" or fallen)
    assert device.counts["eigenvalues"] == 0
    check(result, a, device)
    assert device.counts["eigenvalues"] == (name in DEFICIENT and method in ("auto", "qdwh"))


@pytest.mark.parametrize(
    ("name", "method", "reads"),
    [
        ("gaussian", "auto", 3),
        ("gaussian", "qdwh", 3),
        ("gaussian", "svd", 2),
        ("condition 1e12", "auto", 4),
        ("rank N - 1", "auto", 4),
        ("near orthogonal", "newton_schulz", 4),
        ("gaussian", "newton_schulz", 5),
        ("gaussian", "zolotarev", 4),
    ],
)
def test_exact_number_of_reads(any_device, name, method, reads):
    device = any_device
    device(polarlib.polar, SQUARES[name], method=method)
    assert device.reads == reads


def test_the_automatic_choice(device):
    for name, method in {
        "gaussian": "hybrid",
        "condition 1e12": "hybrid",
        "rank N - 1": "qdwh",
    }.items():
        assert device(polarlib.polar, SQUARES[name]).method == method
    assert device(polarlib.polar, gaussian(20, 20)).method == "svd"
    assert device(polarlib.polar, gaussian(2, 3, N, N)).method == "hybrid"


STACK = np.stack([SQUARES["gaussian"], SQUARES["near orthogonal"], SQUARES["condition 1e12"]])


@pytest.mark.parametrize(
    "a",
    [
        STACK,
        np.stack([*STACK, SQUARES["rank N / 2"]]),
        np.stack([STACK[0], 0 * STACK[0]]),
        gaussian(3 * N, N),
        gaussian(N, 2 * N),
        gaussian(3 * N, N) @ SQUARES["condition 1e12"],
        gaussian(N, N) * 1e150,
        gaussian(N, N, dtype="float32") * np.float32(1e-35),
        np.zeros((N, N)),
        np.diag(np.r_[np.ones(N - 2), 0, 0]),
    ],
)
def test_values(device, a):
    check(device(polarlib.polar, a), a, device)


def test_a_wrong_promise_is_noticed(device):
    """Plans for a bound of the caller are checked before they end."""
    a = SQUARES["condition 1e12"]
    for method in ("auto", "qdwh", "hybrid", "newton_schulz"):
        result = device(polarlib.polar, a, method=method, cond=10.0)
        check(result, a, device)


def test_a_right_promise_lets_products_go_on(device):
    """One small singular value, during whose growth the defect stays what it is."""
    a = with_singular_values(np.r_[np.ones(N - 1), 1e-6])
    result = device(polarlib.polar, a, method="newton_schulz", cond=1e7)
    assert result.status is Status.CONVERGED
    check(result, a, device)


def test_what_is_not_finite(device):
    a = gaussian(N, N)
    a[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of"):
        device(polarlib.polar, a)
    with pytest.warns(polarlib.ConvergenceWarning):
        result = device(polarlib.polar, np.stack([a, STACK[0]]), check_finite=False)
    u = device.lib.to_numpy(result.unitary)
    assert np.isnan(u[0]).all()
    np.testing.assert_allclose(u[1].T @ u[1], np.eye(N), atol=1e-13)


@pytest.mark.parametrize("name", SQUARES)
def test_newton_schulz_foresees_its_end(device, name):
    """As many steps as where each defect is read; a few more where zeros are left."""
    a = SQUARES[name]
    result = device(polarlib.polar, a, method="newton_schulz")
    assert device.reads <= (4 + result.iterations // 5 if name not in DEFICIENT else 9)
    host = library("array_api_strict")  # the arithmetic of any library, with free reads
    ops = ops_of(host.asarray(a))
    ops.host = True
    try:
        expected = polarlib.polar(host.asarray(a), method="newton_schulz")
    finally:
        del ops.host
    if name in DEFICIENT:
        assert expected.iterations <= result.iterations <= expected.iterations + 8
    else:
        assert abs(result.iterations - expected.iterations) <= 1
    check(result, a, device)
    assert len(result.trace) == result.iterations


@pytest.mark.parametrize("method", ["qdwh", "hybrid", "newton_schulz"])
def test_the_trace_is_read_if_somebody_asks(device, method):
    result = device(polarlib.polar, SQUARES["gaussian"], method=method)
    before = device.reads
    trace = result.trace
    assert device.reads == before + 1
    assert result.trace is trace
    assert device.reads == before + 1
    assert all(type(change) is float for change in trace)
    assert trace[-1] < 0.1 < max(trace)


def test_a_result_whose_figures_were_not_read_is_pickled(device):
    result = device(polarlib.polar, SQUARES["gaussian"], method="qdwh")
    copied = pickle.loads(pickle.dumps(result))
    assert copied.trace == result.trace
    assert copied.rank == N


def test_probes_are_moved_once(any_device):
    """Those of a size and kind: another call finds them where they are."""
    device = any_device
    functions._placed.cache_clear()
    device(polarlib.polar, SQUARES["gaussian"])
    assert device.counts["from_host"] == 1
    device(polarlib.polar, SQUARES["condition 1e12"])
    assert device.counts["from_host"] == 0
    device(polarlib.polar, SQUARES["float32"])
    assert device.counts["from_host"] == 1


@pytest.mark.thinned(2)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_stacks_of_few_columns(any_device, n):
    device = any_device
    a = gaussian(500, n, n)
    a[3], a[5] = 0, 1.0
    result = device(polarlib.polar, a)
    assert device.reads <= 2
    assert device.counts["svd"] == 1
    check(result, a, device)
    result = device(polarlib.polar, a, method="small")
    assert device.counts["svd"] == 1
    check(result, a, device)
    r = device.lib.to_numpy(device(polarlib.nearest_rotation, a))
    assert device.counts["svd"] == 1
    np.testing.assert_allclose(
        r @ np.swapaxes(r, -1, -2), np.broadcast_to(np.eye(n), a.shape), atol=1e-13
    )
    np.testing.assert_allclose(np.linalg.det(r), 1, atol=1e-13)


def test_half_precision(device):
    if device.lib.name == "array_api_strict":
        pytest.skip("it has no half precision")
    x = device.lib.asarray(gaussian(N, N))
    x = ops_of(x).cast(x, "bfloat16")
    device.counts.clear()
    result = polarlib.polar(x)
    assert result.converged
    assert device.reads <= 5
    assert device.counts["eigenvalues"] == 0
    assert result.rank == N


def test_other_functions(device):
    a = gaussian(N, N)
    device(polarlib.nearest_orthogonal, a)
    assert device.reads == 3
    root = device.lib.to_numpy(device(polarlib.sqrtm_psd, a @ a.T))
    assert device.reads <= 7
    np.testing.assert_allclose(root @ root, a @ a.T, atol=1e-11)


def test_operators():
    """Of torch, views excepted: what a device has to launch, or nearly; and no hidden read."""
    torch = library("torch").xp
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operators(TorchDispatchMode):
        counts: collections.Counter

        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.counts[f.name().removeprefix("aten::").partition(".")[0]] += 1
            return f(*args, **(kwargs or {}))

    def used(f, a):
        polarlib.polar(a)  # probes are there
        mode = Operators()
        mode.counts = collections.Counter()
        device.counts.clear()
        with mode:
            f(a)
        assert mode.counts["_local_scalar_dense"] == device.counts["item"]
        return sum(n for name, n in mode.counts.items() if name not in VIEWS)

    with pytest.MonkeyPatch.context() as monkeypatch:
        device = Device("torch", monkeypatch)
        small = torch.asarray(gaussian(5000, 3, 3))
        assert used(polarlib.polar, small) <= 60
        square = torch.asarray(SQUARES["gaussian"])
        assert used(polarlib.polar, square) <= 360
        # One iteration for the whole stack.
        stack = torch.asarray(gaussian(9, N, N))
        assert used(polarlib.polar, stack) <= 1.25 * used(polarlib.polar, stack[:1])


@pytest.mark.parametrize(
    "step",
    [
        NEWTON_SCHULZ[3],
        NEWTON_SCHULZ[5],
        Step((3.0, 1.0), 3.0),
        Step((21.0, 100.0), 120.0),
        Step((3.4, -4.7, 2.0)),
    ],
)
def test_the_image_of_a_step(step):
    """What a prediction rests on: the smallest and largest value on an interval."""
    for low, high in ((1e-3, 1.0), (0.3, 1.2), (0.9, 1.1), (0.5, 0.5)):
        values = [step(s) for s in np.linspace(low, high, 20001)]
        assert step.image(low, high) == pytest.approx((min(values), max(values)), abs=1e-7)
        assert step.image(low, high)[0] <= min(values) <= max(values) <= step.image(low, high)[1]
