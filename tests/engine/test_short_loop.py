"""The loop of few calls on one torch matrix: the results and errors of the general one."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import off_the_host

import polarlib
from polarlib.arrays import torch_ops
from polarlib.engine import iterate
from polarlib.orthogonalization import matrices as orthogonalization

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# torch's own, of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

SHAPES = [(1, 1), (3, 3), (5, 2), (2, 7), (64, 64), (150, 96), (96, 150)]
DTYPES = ("float64", "float32", "bfloat16", "float16")
OPTIONS = {
    "default": {},
    "polar_express": {"schedule": "polar_express"},
    "schatten4": {"schedule": polarlib.schedule("jordan", steps=4), "normalisation": "schatten4"},
    "own format": {"precision": "float32"},
    "gram": {"form": "gram"},
    "cubics": {"schedule": "newton_schulz_3", "steps": 6},
}


def gaussian(shape, dtype, scale=1.0, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape) * scale
    return torch.tensor(x).to(getattr(torch, dtype))


def by_engine(x, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(orthogonalization, "_short", lambda *_: None)
        return polarlib.orthogonalize(x, **options)


@pytest.fixture
def taken(monkeypatch):
    """Results of the loop of few calls, None among them."""
    results = []
    run = orthogonalization._short

    def recorded(*given):
        results.append(run(*given))
        return results[-1]

    monkeypatch.setattr(orthogonalization, "_short", recorded)
    return results


@pytest.fixture(params=[False, True], ids=["as it is", "16 bits at speed"])
def at_speed(request, monkeypatch):
    """Processors that multiply in 16 bits too."""
    if request.param:
        monkeypatch.setattr(torch_ops, "multiplies_at_speed", lambda _: True)
    return request.param


@pytest.mark.filterwarnings("ignore::polarlib.ScheduleWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_those_of_the_engine(shape, dtype, options, at_speed, monkeypatch):
    for scale in (1.0, 1e-3, 1e18, 0.0):
        x = gaussian(shape, dtype, scale)
        if not torch.isfinite(x).all():
            continue
        before = x.clone()
        found = polarlib.orthogonalize(x, **options)
        wanted = by_engine(x, monkeypatch, **options)
        assert torch.equal(found, wanted)
        assert (found.dtype, found.stride()) == (wanted.dtype, wanted.stride())
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_it_is_taken(dtype, at_speed, taken, monkeypatch):
    counted = []
    monkeypatch.setattr(iterate, "iterate", lambda *a, **k: counted.append(a))
    x = gaussian((40, 30), dtype)
    for _ in range(2):
        polarlib.orthogonalize(x)
    if dtype != "bfloat16" or at_speed:
        assert all(u is not None for u in taken)
        assert not counted


class Orthogonal(torch.nn.Module):
    def forward(self, x):
        return polarlib.orthogonalize(x)


ELSEWHERE = {
    "records": lambda x: polarlib.orthogonalize(x.requires_grad_()),
    "a stack": lambda x: polarlib.orthogonalize(x[None]),
    "columns": lambda x: polarlib.orthogonalize(x.mT.contiguous().mT),
    "a slice": lambda x: polarlib.orthogonalize(x[:, ::2]),
    "no columns": lambda x: polarlib.orthogonalize(x[:, :0]),
    "complex": lambda x: polarlib.orthogonalize(x + 0j),
    "vmap": lambda x: torch.func.vmap(polarlib.orthogonalize)(x[None]),
    "jvp": lambda x: torch.func.jvp(polarlib.orthogonalize, (x,), (x,))[0],
    "columns on meta": lambda x: polarlib.orthogonalize(x.to("meta").mT),
    "recorded": lambda x: torch.export.export(Orthogonal(), (x,)).module()(x),
    "another format": lambda x: polarlib.orthogonalize(x, precision="bfloat16"),
    "steps of degree 3": lambda x: polarlib.orthogonalize(x, schedule="newton_schulz_3", steps=3),
    "rational steps": lambda x: polarlib.orthogonalize(x, schedule="halley"),
    "the gram form": lambda x: polarlib.orthogonalize(x, form="gram"),
    "a list of restarts": lambda x: polarlib.orthogonalize(x, form="gram", restarts=[2]),
    "spectral": lambda x: polarlib.orthogonalize(x, normalisation="spectral"),
    "huge": lambda x: polarlib.orthogonalize(x.double() * 1e100),
}


@pytest.mark.parametrize("call", ELSEWHERE.values(), ids=ELSEWHERE)
def test_all_else_is_left_to_the_engine(call, taken):
    u = call(gaussian((24, 24), "float32"))
    assert u.ndim >= 2
    assert all(result is None for result in taken)


def test_reduced_products_are_left_to_the_engine(taken):
    x = gaussian((24, 24), "float32")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        polarlib.orthogonalize(x)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert taken == [None]


def test_autocast_is_left_to_the_engine(taken):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u = polarlib.orthogonalize(gaussian((24, 24), "float32"))
    assert u.dtype == torch.float32
    assert taken == [None]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_refused(value):
    x = gaussian((6, 4), "float32")
    x[2, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        polarlib.orthogonalize(x)


def test_wrong_arguments_are_refused_as_everywhere():
    x = gaussian((6, 4), "float32")
    polarlib.orthogonalize(x, steps=1)
    for wrong in (
        {"steps": 0},
        {"steps": True},
        {"steps": 1.0},
        {"form": "wide"},
        {"schedule": {}},
        {"precision": "float31"},
    ):
        with pytest.raises((TypeError, ValueError)) as of_torch:
            polarlib.orthogonalize(x, **wrong)
        with pytest.raises((TypeError, ValueError)) as of_numpy:
            polarlib.orthogonalize(x.numpy(), **wrong)
        assert str(of_torch.value) == str(of_numpy.value)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantized tensor:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]),
        lambda x: x.to_sparse(),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    ],
    ids=["nested", "sparse", "quantised"],
)
def test_other_kinds_of_tensors_are_refused_as_before(make):
    with pytest.raises(TypeError, match=r"tensor|sparse"):
        polarlib.orthogonalize(make(gaussian((6, 4), "float32")))


def test_hazards_are_told_each_time(monkeypatch):
    monkeypatch.setattr(torch_ops, "multiplies_at_speed", lambda _: True)
    x = gaussian((6, 4), "bfloat16")
    for _ in range(2):
        with pytest.warns(polarlib.ScheduleWarning, match="diverges above"):
            polarlib.orthogonalize(x, schedule="polar_express_raw")


# -- the way of devices ------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """Tensors of the CPU go the way of those on devices."""
    off_the_host(monkeypatch)
    monkeypatch.setattr(torch_ops, "multiplies_at_speed", lambda _: True)


class Counted(TorchDispatchMode):
    """Names of operators, without views and new storage; operators on one number apart."""

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        if f.name().split(".")[0] not in FREE:
            self.names.append(f.name())
            self.numbers += [f.name()] * all(t.numel() == 1 for t in args if is_tensor(t))
        return out

    def __init__(self):
        super().__init__()
        self.names, self.numbers = [], []


FREE = {f"aten::{name}" for name in ("empty", "transpose", "detach", "alias", "diagonal")}
is_tensor = torch.is_tensor


@pytest.mark.filterwarnings("ignore::polarlib.ScheduleWarning")
@pytest.mark.parametrize(
    "options", [*OPTIONS.values(), {"schedule": "jordan"}], ids=[*OPTIONS, "frobenius"]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_device_gets_the_results_of_the_engine(shape, dtype, options, device, monkeypatch):
    for scale in (1.0, 1e-3, 1e18, 0.0, float("nan")):
        x = gaussian(shape, dtype, scale)
        before = x.clone()
        found = polarlib.orthogonalize(x, **options)
        wanted = by_engine(x, monkeypatch, **options)
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
        assert torch.equal(found.isnan(), wanted.isnan())
        assert bool(found.isnan().all()) == bool(not x.isfinite().all())
        assert torch.equal(x.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1024, 1024), (512, 128), (128, 512), (4, 64, 64)], ids=str)
@pytest.mark.parametrize("schedule", ["auto", "jordan", "polar_express"])
def test_five_quintics_are_twenty_operators(shape, dtype, schedule, device):
    if dtype == "float16" and schedule == "polar_express":
        pytest.skip("no room for roundings in float16")
    x = gaussian(shape, dtype).to("meta" if shape == (1024, 1024) else "cpu")
    with Counted() as counted:
        polarlib.orthogonalize(x, schedule=schedule, steps=5)
    products = [name for name in counted.names if "mm" in name]
    assert len(counted.names) <= len(products) + (2 if shape[-1] == shape[-2] else 6)
    assert shape[-1] != shape[-2] or len(products) == 15
    assert not counted.numbers
