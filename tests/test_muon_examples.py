"""examples/muon_torch.py and muon_optax.py, against torch.optim.Muon and optax.contrib.muon."""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import library

import polarlib
from polarlib import norms

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not installed")
JORDAN = (3.4445, -4.7750, 2.0315)
STEPS = 12
# Fifteen products of bfloat16, each with a relative change of at most 2^-8.
HALF = 15 * 2.0**-8
# Sums in another order, times the schedule's slope at 0, 485, and a few for the steps.
SINGLE, DOUBLE = 2e4 * 2.0**-24, 1e5 * 2.0**-53


@pytest.fixture(scope="module")
def script():
    """An example as a module; they import the task beside them."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def muon(script, torch):
    """The class of muon_torch.py."""
    return script("muon_torch").Muon


@pytest.fixture
def ours(script):
    """muon_optax.py as a module."""
    library("jax")
    pytest.importorskip("optax")
    return script("muon_optax")


def apart(a, b):
    """Largest relative difference of two curves."""
    a, b = np.array(a), np.array(b)
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return float(np.max(np.abs(a - b) / np.abs(b)))


def alone(x, steps=5):
    """What a matrix becomes, by NumPy in double precision."""
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = JORDAN[0] * x + (JORDAN[1] * gram + JORDAN[2] * gram @ gram) @ x
    return x


# -- the scripts and their task ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["muon_torch", "muon_optax", "digits"])
def test_the_scripts_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) < 80


def test_the_task(script, monkeypatch, capsys):
    digits = script("digits")
    for installed in (True, False):
        if not installed:
            monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
        x, y = digits.task()
        assert x.shape == (len(y), digits.INPUTS)
        assert y.shape == (len(x), digits.OUTPUTS)
        assert x.dtype == y.dtype == np.float32
        assert np.isclose(np.mean(x**2), 1, atol=1e-3)
        # No linear map of the inputs has it all: there is something to learn.
        # The digits have columns that are constant: lstsq gives no residual then.
        left = np.sum((x @ np.linalg.lstsq(x, y, rcond=None)[0] - y) ** 2) / np.sum(y**2)
        assert 0.02 < left < 0.98
    digits.show({"a": [1.0, 2.0], "b": [1.0, 1.0]})
    assert capsys.readouterr().out.endswith("largest difference: 1.0e+00 of the loss\n")


def test_the_benchmark_runs(torch, tmp_path):
    """Every case of the libraries that are there, on small matrices."""
    pytest.importorskip("optax")
    library("jax")
    file = tmp_path / "muon.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "muon.py"),
        "--quick",
        "--only",
        "2 layers",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--json", file], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))["cases"]
    assert list(found) == [
        f"{c} 2 layers" for c in ("torch bfloat16", "jax float32", "jax bfloat16")
    ]
    for case in found.values():
        assert case["ratio"] == case["theirs"] / case["ours"] > 0
        assert case["rounds"] == len(case["ratios"]) >= 5


def test_the_page_has_the_times_of_the_data(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    figures = json.loads((ROOT / "docs/data/muon.json").read_text("utf-8"))
    page = (ROOT / "docs/evidence/muon.md").read_text("utf-8")
    # else: python benchmarks/muon.py --page with --json and --markdown, as on the page
    assert importlib.import_module("muon").page(figures) in page


# -- torch -------------------------------------------------------------------------------------


@pytest.fixture
def train(script, torch):
    """Losses of the example's network, in double precision if asked."""
    example, digits = script("muon_torch"), script("digits")

    def run(optimizer, double=False, steps=STEPS, **how):
        if not double:
            return example.train(optimizer, steps, **how)
        x, y = (torch.from_numpy(a).double() for a in digits.task())
        layers = [torch.nn.Parameter(torch.from_numpy(w).double()) for w in digits.weights()]
        opt, losses = optimizer(layers, **{"lr": 0.02, **how}), []
        for _ in range(steps):
            opt.zero_grad()
            losses.append(digits.loss(layers, x, y))
            losses[-1].backward()
            opt.step()
        return [loss.item() for loss in losses]

    return run


def test_torchs_curve(muon, train, torch):
    curves = [train(optimizer) for optimizer in (muon, torch.optim.Muon)]
    assert apart(*curves) < HALF
    assert curves[0][-1] < curves[0][0] / 2
    # In the gradient's own format too: the iteration of torch is bfloat16 always.
    assert apart(train(muon, precision=None), curves[1]) < HALF


@pytest.fixture
def doubles(monkeypatch, torch):
    """torch.optim.Muon with its iteration in double precision, which shows everything else."""
    module = importlib.import_module("torch.optim._muon")

    def iterate(g, coefficients, steps, eps):
        assert coefficients == JORDAN
        return torch.from_numpy(alone(g, steps))

    monkeypatch.setattr(module, "_zeropower_via_newtonschulz", iterate)


OPTIONS = [
    {},
    {"nesterov": False},
    {"momentum": 0.8},
    {"weight_decay": 0.7},
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": "match_rms_adamw"},
    {"lr": 0.05},
]


@pytest.mark.parametrize("how", OPTIONS, ids=str)
def test_torchs_curve_in_doubles(how, muon, train, torch, doubles):
    """What differs in bfloat16 is rounding alone; the wrong semantics would show."""
    right = train(torch.optim.Muon, double=True, **how)
    assert apart(train(muon, double=True, precision=None, **how), right) < DOUBLE
    for other in OPTIONS:
        same = {"adjust_lr_fn": None} | how == {"adjust_lr_fn": None} | other
        if not same and {how.get("adjust_lr_fn"), other.get("adjust_lr_fn")} != {None, "original"}:
            found = train(muon, double=True, precision=None, steps=3, **other)
            assert apart(found, right[:3]) > 1e-4, other


def layers_of(torch, *shapes, seed=0):
    """Parameters with gradients."""
    rng = np.random.default_rng(seed)
    params = [torch.nn.Parameter(torch.from_numpy(rng.standard_normal(s))) for s in shapes]
    for p in params:
        p.grad = torch.from_numpy(rng.standard_normal(p.shape))
    return params


def first_step(p, matrices):
    """A first step with a learning rate of 1 and no decay, from the gradient's matrices."""
    made = np.stack([alone(x) for x in matrices])
    scale = norms.update_scale(*made.shape[1:], "jordan")
    return p - scale * made.reshape(p.shape)


def test_kernels_heads_and_stacks(muon, torch):
    shapes = (8, 3, 5, 5), (6, 4, 3), (12, 5), (3, 8, 4), (2, 8, 6)
    params = layers_of(torch, *shapes)
    before = [p.detach().numpy().copy() for p in params]
    grads = [p.grad.numpy() for p in params]
    groups = [
        {"params": params[:2]},
        {"params": params[2:3], "heads": 3},
        {"params": params[3:4], "convolution": False},
        {"params": params[4:], "convolution": False, "heads": 4},
    ]
    muon(groups, lr=1.0, weight_decay=0.0, precision=None).step()
    matrices = [
        grads[0].reshape(1, 8, 75),
        grads[1].reshape(1, 6, 12),
        grads[2].reshape(3, 4, 5),
        grads[3],
        grads[4].reshape(8, 2, 6),
    ]
    for p, old, x in zip(params, before, matrices, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), first_step(old, x), rtol=0, atol=1e-10)


def test_any_schedule(muon, torch):
    (p,) = layers_of(torch, (9, 6))
    before, grad = p.detach().clone(), p.grad
    own = polarlib.schedule("polar_express", steps=6)
    muon([p], lr=1.0, weight_decay=0.0, precision=None, schedule=own).step()
    expected = before - 1.5**0.5 * polarlib.orthogonalize(grad, schedule=own)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-12)


def test_nothing_and_zero(muon, torch):
    """A parameter without gradient stays, one with a zero gradient decays and has no NaN."""
    params = layers_of(torch, (4, 3), (4, 3), (4, 3))
    before = [p.detach().clone() for p in params]
    params[0].grad, params[1].grad = None, torch.zeros(4, 3, dtype=torch.float64)
    opt = muon(params, lr=0.1, weight_decay=0.5)
    opt.step()
    torch.testing.assert_close(params[0].detach(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(params[1].detach(), before[1] * (1 - 0.1 * 0.5), rtol=0, atol=0)
    assert params[0] not in opt.state
    assert bool((params[2] != before[2]).all())
    params[1].grad = params[2].grad = None
    opt.step()  # with no gradient at all


def test_wrong_arguments(muon, torch):
    matrix, vector = torch.nn.Parameter(torch.ones(6, 4)), torch.nn.Parameter(torch.ones(4))
    for params in ([matrix, vector], [{"params": [matrix]}, {"params": [vector]}]):
        with pytest.raises(ValueError, match=r"Muon takes matrices.*\(4,\)"):
            muon(params)
    with pytest.raises(ValueError, match=r"\(6, 4\), heads=4"):
        muon([matrix], heads=4)
    with pytest.raises(TypeError, match=r"Muon takes lr, .*not ns_steps"):
        muon([matrix], ns_steps=5)
    opt = muon([matrix])
    with pytest.raises(ValueError, match="Muon takes matrices"):
        opt.add_param_group({"params": [vector]})
    assert len(opt.param_groups) == 1
    matrix.grad = torch.ones(6, 4)
    for wrong, words in (
        ({"adjust_lr_fn": "spectral"}, "rule must be"),
        ({"schedule": "nothing"}, "unknown schedule"),
        ({"precision": "half"}, "half"),
    ):
        with pytest.raises(ValueError, match=words):
            muon([matrix], **wrong).step()
    assert bool((matrix == 1).all())  # refused before anything moved


def test_closure(muon, torch):
    (p,) = layers_of(torch, (5, 3))
    opt = muon([p])

    def closure():
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    values = [opt.step(closure).item() for _ in range(3)]
    assert values[2] < values[1] < values[0]


def test_states_round_trip(muon, torch, script, monkeypatch):
    digits = script("digits")
    with monkeypatch.context() as m:
        # Of rank-deficient gradients, as those of the digits are, no two iterations in bfloat16
        # agree where singular values are rounding.
        m.setattr(digits.importlib.util, "find_spec", lambda name: None)
        x, y = map(torch.from_numpy, digits.task())

    def start(optimizer, layers=None):
        layers = digits.weights() if layers is None else layers
        layers = [torch.nn.Parameter(torch.as_tensor(w).detach().clone()) for w in layers]
        return layers, optimizer(layers, lr=0.02)

    def go(layers, opt, steps=3):
        for _ in range(steps):
            opt.zero_grad()
            loss = digits.loss(layers, x, y)
            loss.backward()
            opt.step()
        return [w.detach() for w in layers]

    layers, opt = start(muon)
    go(layers, opt)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    others, again = start(muon, layers)
    again.load_state_dict(torch.load(file))
    for a, b in zip(go(layers, opt), go(others, again), strict=True):
        assert torch.equal(a, b)

    # States of torch.optim.Muon are continued, and ours by it.
    for kinds in itertools.permutations((muon, torch.optim.Muon)):
        layers, opt = start(kinds[0])
        go(layers, opt)
        others, taken = start(kinds[1], layers)
        state = opt.state_dict()
        if kinds[1] is not muon:  # which does not fill in what its states lack
            state["param_groups"][0] |= {"ns_coefficients": JORDAN, "ns_steps": 5, "eps": 1e-7}
        taken.load_state_dict(state)
        for a, b in zip(go(layers, opt, 1), go(others, taken, 1), strict=True):
            assert 0 < (a - b).norm() < HALF * 0.02 * min(a.shape) ** 0.5 * 2


@pytest.mark.parametrize("precision", ["bfloat16", None])
def test_under_autocast_and_other_dtypes(precision, muon, torch):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = []
        for enabled in (False, True):
            params = layers_of(torch, (8, 6), (6, 8))
            for p in params:
                p.data, p.grad = p.data.to(dtype), p.grad.to(dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                muon(params, precision=precision).step()
            assert all(p.dtype == dtype for p in params)
            found.append(params)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_equal_shapes_are_one_batch(muon, torch):
    """The number of operations does not grow with the number of layers of a shape."""
    mode = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode

    class Products(mode):
        def __init__(self):
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += "mm" in str(function)
            return function(*args, **(kwargs or {}))

    counts = []
    for layers in (2, 7):
        opt = muon(layers_of(torch, *[(8, 6)] * layers), precision=None)
        with Products() as products:
            opt.step()
        counts.append(products.count)
    assert counts == [15, 15]


def test_compiled(muon, torch, script):
    """One graph without breaks, with a learning rate that changes, and the same bits."""
    digits = script("digits")
    x, y = map(torch.from_numpy, digits.task())
    counters = importlib.import_module("torch._dynamo.utils").counters
    found = []
    for compiled in (False, True):
        layers = [torch.nn.Parameter(torch.from_numpy(w)) for w in digits.weights()]
        opt = muon(layers, lr=torch.tensor(0.02))
        counters.clear()
        step = functools.partial(opt.step)
        if compiled:
            step = torch.compile(step, backend="aot_eager", fullgraph=True)
        for i in range(4):
            opt.zero_grad()
            digits.loss(layers, x, y).backward()
            step()
            opt.param_groups[0]["lr"].fill_(0.02 / (i + 2))
        found.append(layers)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2  # the first step makes the buffers


def test_scales_are_numbers_of_a_graph(torch):
    """update_scale is read by torch.compile, for sizes that are symbols too."""

    def f(x):
        return x * norms.update_scale(*x.shape, "moonlight")

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((4, 9), (5, 9), (25, 16)):
        torch.testing.assert_close(compiled(torch.ones(shape)), f(torch.ones(shape)))


FSDP = """
import json, sys, warnings
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import digits
from muon_torch import Muon

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
x, y = map(torch.from_numpy, digits.task())


def train(sharded, **how):
    made = [torch.nn.Linear(w.shape[1], w.shape[0], bias=False) for w in digits.weights()]
    for layer, w in zip(made, digits.weights(), strict=True):
        layer.weight.data = torch.from_numpy(w)
    relu = torch.nn.ReLU()
    net = torch.nn.Sequential(made[0], relu, made[1], relu, made[2])
    if sharded:
        for layer in made:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    opt, losses = Muon(net.parameters(), lr=0.02, **how), []
    for _ in range(6):
        opt.zero_grad()
        losses.append((net(x) - y).square().mean())
        losses[-1].backward()
        opt.step()
    kept = [(p, opt.state[p]["momentum_buffer"]) for p in net.parameters()]
    if sharded:
        assert all(t.placements[0].is_shard(0) for pair in kept for t in pair)
    return [loss.item() for loss in losses]


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    options = {}, {'precision': None, 'heads': 2}
    found = [[train(s, **how) for s in (True, False)] for how in options]
if rank == 0:
    texts = sorted({str(w.message) for w in caught})
    sys.stdout.write(json.dumps({"losses": found, "warnings": texts}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_fully_sharded(torch, tmp_path):
    """FSDP2 on two processes: the same curve, parameters and buffers stay in their placements."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    path = os.pathsep.join([str(ROOT), str(EXAMPLES), *filter(None, sys.path)])
    command = [sys.executable, "-c", FSDP]
    runs = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    outputs = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    found = json.loads(outputs[0][0])
    (half, whole), (single, alone) = found["losses"]
    assert apart(half, whole) < HALF
    assert apart(single, alone) < SINGLE
    # The head is wider than it is tall: FSDP2 shards its rows, and products need its columns.
    sent = [text for text in found["warnings"] if "MB per device" in text]
    assert len(sent) >= 1
    assert all("(10, 128)" in text or "(5, 128)" in text for text in sent), sent


# -- optax -------------------------------------------------------------------------------------


@pytest.fixture
def optax(ours):
    return importlib.import_module("optax")


def curve(ours, optimizer, steps=STEPS):
    """Losses of the example's network in double precision."""
    jax, jnp, digits = ours.jax, ours.jnp, ours.digits
    x, y = (jnp.asarray(a, "float64") for a in digits.task())
    layers = [jnp.asarray(w.T, "float64") for w in digits.weights()]

    @jax.jit
    def step(layers, state):
        find = jax.value_and_grad(lambda ws: digits.loss([w.T for w in ws], x, y))
        value, grads = find(layers)
        updates, state = optimizer.update(grads, state, layers)
        return ours.optax.apply_updates(layers, updates), state, value

    state, losses = optimizer.init(layers), []
    for _ in range(steps):
        layers, state, value = step(layers, state)
        losses.append(float(value))
    return losses


PAIRS = [
    ({"nesterov": False, "weight_decay": 0.5}, {"nesterov": False, "weight_decay": 0.5}),
    ({"rule": "moonlight", "beta": 0.8}, {"consistent_rms": 0.2, "beta": 0.8}),
]


def test_optaxs_curve_in_doubles(ours, optax):
    """Without the number that optax adds to the norm."""
    found = [curve(ours, ours.muon(0.02, **mine)) for mine, _ in PAIRS]
    right = [curve(ours, optax.contrib.muon(0.02, eps=1e-30, **theirs)) for _, theirs in PAIRS]
    assert apart(found, right) < DOUBLE
    assert apart(*found) > 1e-2


def test_optaxs_curve(ours, optax):
    curves = [ours.train(make(0.02, weight_decay=0.1)) for make in (ours.muon, optax.contrib.muon)]
    assert apart(*curves) < SINGLE
    assert curves[0][-1] < curves[0][0] / 2


def test_kernels_of_flax(ours, optax):
    """(h, w, in, out), of which the matrix is (h w in, out)."""
    jnp, rng = ours.jnp, np.random.default_rng(1)
    params = {"kernel": jnp.asarray(rng.standard_normal((3, 3, 4, 8))), "bias": jnp.ones(8)}
    grads = {k: jnp.asarray(rng.standard_normal(v.shape)) for k, v in params.items()}
    dims = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    theirs = optax.contrib.muon(0.1, muon_weight_dimension_numbers={"kernel": dims, "bias": None})
    mine = ours.muon(0.1)
    a, b = (ours.jax.jit(opt.update)(grads, opt.init(params), params)[0] for opt in (mine, theirs))
    for name, found in a.items():
        np.testing.assert_allclose(found, b[name], rtol=0, atol=1e-9)


def test_masked_in_a_chain(ours, optax):
    """Within other transformations, with a rate that changes, for a part of the parameters."""
    jax, jnp, rng = ours.jax, ours.jnp, np.random.default_rng(2)
    params = {"w": jnp.asarray(rng.standard_normal((6, 4))), "b": jnp.ones(4)}
    grads = {"w": jnp.asarray(rng.standard_normal((6, 4))), "b": jnp.full(4, 0.25)}
    rates = optax.linear_schedule(1.0, 0.0, 4)
    opt = optax.chain(
        optax.clip_by_global_norm(100.0),
        optax.masked(ours.scale_by_muon(nesterov=False), {"w": True, "b": False}),
        optax.scale_by_learning_rate(rates),
    )
    state = opt.init(params)
    for i in range(3):
        updates, state = jax.jit(opt.update)(grads, state, params)
        rate = -(1 - i / 4)
        expected = rate * alone(np.asarray(grads["w"]).T).T  # the momentum of a constant
        np.testing.assert_allclose(updates["w"], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(updates["b"], rate * 0.25, rtol=1e-14)


def test_zero_gradients_of_optax(ours):
    jnp, dtypes = ours.jnp, ("float32", "bfloat16")
    params = {kind: {d: jnp.ones((4, 3), d) for d in dtypes} for kind in ("zero", "eye")}
    grads = {"zero": {d: jnp.zeros((4, 3), d) for d in dtypes}}
    grads["eye"] = {d: jnp.eye(4, 3, dtype=d) for d in dtypes}
    opt = ours.scale_by_muon()
    updates, state = ours.jax.jit(opt.update)(grads, opt.init(params))
    assert int(state.count) == 1
    for dtype in dtypes:
        assert bool((updates["zero"][dtype] == 0).all())
        assert updates["eye"][dtype].dtype == dtype
        np.testing.assert_allclose(
            updates["eye"][dtype].astype("float64"), alone(np.eye(4, 3)), atol=HALF
        )


def test_wrong_parameters_of_optax(ours):
    with pytest.raises(ValueError, match=r"Muon needs matrices or kernels, got shape \(4,\)"):
        ours.scale_by_muon().init({"w": ours.jnp.ones((4, 3)), "b": ours.jnp.ones(4)})
    opt, params = ours.scale_by_muon(rule="spectral"), [ours.jnp.ones((4, 3))]
    with pytest.raises(ValueError, match="rule must be"):
        opt.update(params, opt.init(params))


def test_coefficients_are_in_the_state(ours):
    """Traced arrays: other ones need no compilation; the schedule's safety is in the first."""
    jax, jnp, rng = ours.jax, ours.jnp, np.random.default_rng(3)
    params = {"w": jnp.asarray(rng.standard_normal((6, 6)))}
    opt = ours.scale_by_muon("polar_express", steps=5, nesterov=False)
    state, compiled = opt.init(params), []

    @jax.jit
    def update(grads, state):
        compiled.append(1)
        return opt.update(grads, state)[0]["w"]

    expected = polarlib.orthogonalize(params["w"], schedule="polar_express", steps=5, form="plain")
    np.testing.assert_allclose(update(params, state), expected, rtol=0, atol=1e-9)
    jordan = state._replace(coefficients=jnp.array([JORDAN] * 5))
    expected = alone(np.asarray(params["w"]))
    np.testing.assert_allclose(update(params, jordan), expected, rtol=0, atol=1e-9)
    assert compiled == [1]
    with pytest.raises(ValueError, match="is for frobenius, not 'aol'"):
        ours.scale_by_muon("turbo_muon")


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import muon_optax

assert jax.device_count() == 2
mesh = Mesh(np.array(jax.devices()), ("x",))
rng = np.random.default_rng(0)
params = {"w": rng.standard_normal((32, 8), np.float32), "b": np.ones(8, np.float32)}
grads = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in params.items()}
opt = muon_optax.muon(0.1, weight_decay=0.1)


def two_steps(params, grads):
    state = opt.init(params)
    step = jax.jit(opt.update, donate_argnums=1)
    for _ in range(2):
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


alone = two_steps(*(jax.tree.map(jnp.asarray, t) for t in (params, grads)))
spread = {"w": NamedSharding(mesh, P("x", None)), "b": NamedSharding(mesh, P())}
there = two_steps(*(jax.device_put(t, spread) for t in (params, grads)))
assert len(there["w"].sharding.device_set) == 2
for name, value in there.items():
    np.testing.assert_allclose(value, alone[name], rtol=0, atol=2e-4)
"""


@pytest.mark.slow  # JAX compiles in a new process
def test_sharded_in_optax(ours):
    """Parameters over two devices: the same steps."""
    path = os.pathsep.join([str(ROOT), str(EXAMPLES), *filter(None, sys.path)])
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
