"""torch.compile, torch.export, torch.jit.trace, torch.func, and tensors out of the ordinary."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import off_the_host

import polarlib
from polarlib import norms, updates
from polarlib.arrays import ops as seam
from polarlib.arrays import torch_ops
from polarlib.norms import spectral_maps

torch = pytest.importorskip("torch")

pytestmark = [
    # torch's own, where warnings are errors: of forward mode, of jit, of frames that are resumed.
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TracerWarning"),
]
trace_checks = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

JORDAN = polarlib.schedule("jordan", steps=3)


def gaussian(*shape, dtype="float64", seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return torch.tensor(x).to(getattr(torch, dtype))


def definite(x):
    return x.mT @ x + torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


# Each of 5 x 3 matrices. Functions that never read a number of their matrix where it is hidden.
UNSEEN = {
    "orthogonalize": lambda x: polarlib.orthogonalize(x),
    "orthogonalize, gram": lambda x: polarlib.orthogonalize(x, schedule=JORDAN, form="gram"),
    "orthogonalize, halley": lambda x: polarlib.orthogonalize(x, schedule="halley"),
    "orthogonalize_all": lambda x: sum(polarlib.orthogonalize_all([x, 2 * x, x.mT])[:2]),
    "nearest_rotation": lambda x: polarlib.nearest_rotation(x[..., :3, :]),
    "procrustes, rotation": lambda x: polarlib.procrustes(x, x.flip(-1), rotation=True),
    "inverse_root": lambda x: polarlib.inverse_root(definite(x), 3),
    "spectral lmo": norms.spectral().lmo,
    "spectral sharp": norms.spectral().sharp,
    "rms_to_rms lmo": norms.rms_to_rms(5, 3).lmo,
    "nuclear lmo": norms.nuclear().lmo,
    "nuclear project": norms.nuclear().project,
    "ky_fan lmo": norms.ky_fan(2, 3).lmo,
    "ky_fan_dual lmo": norms.ky_fan_dual(2).lmo,
    "schatten lmo": norms.schatten(3).lmo,
    "schatten value": lambda x: norms.schatten(3)(x),
    "s_muon lmo": norms.s_muon(0.5, 0.1).lmo,
    "schedule lmo": norms.spectral(polar="jordan").lmo,
    "modular lmo": lambda x: norms.modular([norms.spectral(), norms.frobenius()]).lmo([x, x])[0],
    "spectral_clip": lambda x: spectral_maps.spectral_clip(x, 1.0),
    "spectral_power": lambda x: spectral_maps.spectral_power(x, 0.5),
    "polargrad": lambda x: spectral_maps.polargrad(x),
    "normalise": lambda x: norms.normalise(x, "rows"),
    "row_balanced": lambda x: norms.row_balanced(x),
}
SEEN = {
    "polar": lambda x: polarlib.polar(x).unitary,
    "polar, hermitian": lambda x: polarlib.polar(x).hermitian,
    "nearest_orthogonal": lambda x: polarlib.nearest_orthogonal(x),
    "procrustes": lambda x: polarlib.procrustes(x, x.flip(0).sin()),
    "sqrtm_psd": lambda x: polarlib.sqrtm_psd(definite(x)),
    "sqrtm": lambda x: polarlib.sqrtm(definite(x)),
    "signm": lambda x: polarlib.signm(definite(x) - 2 * x[..., :3, :]),
    "top_singular": lambda x: polarlib.top_singular(x, 2)[1],
}
LOOKS = "reads entries of its matrix"


class Graphs:
    """A backend that counts the graphs that it is given."""

    def __init__(self):
        self.count = 0

    def __call__(self, module, _):
        self.count += 1
        return module.forward


def compiled(f, backend="aot_eager", **how):
    torch._dynamo.reset()
    return torch.compile(f, backend=backend, **how)


def with_gradient(f, x, w):
    x = x.clone().requires_grad_()
    y = f(x)
    y.backward(w)
    return y.detach(), x.grad


# -- torch.compile ---------------------------------------------------------------------------------

WAYS = {
    "auto": {},
    "named": {"schedule": "jordan", "steps": 3},
    "gram": {"schedule": JORDAN, "form": "gram", "restarts": (2,)},
    "bfloat16": {"precision": "bfloat16", "gram_precision": "float16", "form": "gram"},
    "spectral": {"normalisation": "spectral"},
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.thinned(15)
def test_compiled_orthogonalize(dtype, way):
    def step(x):
        return polarlib.orthogonalize(x * 2, **WAYS[way]) + 1

    graphs = Graphs()
    f, g = compiled(step, graphs, fullgraph=True), compiled(step, fullgraph=True)
    for shape in ((5, 3), (6, 4), (7, 5)):
        x, w = gaussian(*shape, dtype=dtype), gaussian(*shape, dtype=dtype, seed=1)
        wanted = with_gradient(step, x, w)
        for h in (f, g):
            for got, right in zip(with_gradient(h, x, w), wanted, strict=True):
                torch.testing.assert_close(got, right)
    assert graphs.count == 2  # the second one for every shape


@pytest.mark.slow
def test_compiled_stacks_and_wide_matrices():
    f = compiled(polarlib.orthogonalize, fullgraph=True)
    for shape in ((2, 5, 3), (3, 4, 3), (3, 5), (2, 2, 3, 5), (0, 3, 3), (3, 0)):
        x = gaussian(*shape)
        torch.testing.assert_close(f(x), polarlib.orthogonalize(x))
    x = gaussian(3, 4).int()
    torch.testing.assert_close(f(x), polarlib.orthogonalize(x))


@pytest.mark.slow
def test_two_schedules_of_one_function():
    f = compiled(lambda x, s: polarlib.orthogonalize(x, schedule=s), fullgraph=True)
    x = gaussian(5, 3)
    for s in (JORDAN, "jordan", polarlib.schedule("polar_express"), JORDAN):
        torch.testing.assert_close(f(x, s), polarlib.orthogonalize(x, schedule=s))


def test_compiled_training_step():
    def loss(w, x):
        g = updates.nesterov(w * 0.5, w, 0.9)
        w = updates.uscg_step(w, g, norms.spectral(polar=JORDAN).lmo, rate=0.1)
        w = updates.scg_step(w, x, polarlib.orthogonalize, step=0.1)
        w = updates.presgdw_step(w, x, x * x + 1, rate=0.1, decay=0.1)
        q, _ = polarlib.orthogonalize_all([w, x])
        return (norms.rms_to_rms(5, 3, polar="jordan").lmo(q) ** 3).sum()

    w, x = gaussian(5, 3), gaussian(5, 3, seed=1)
    results = []
    for f in (loss, compiled(loss, fullgraph=True)):
        a, b = w.clone().requires_grad_(), x.clone().requires_grad_()
        f(a, b).backward()
        results.append((a.grad, b.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.thinned(6)
def test_one_graph_break(name):
    def around(x):
        return SEEN[name](x + 0.5) * 2

    counters = torch._dynamo.utils.counters
    counters.clear()
    x, w = gaussian(5, 3), gaussian(*SEEN[name](gaussian(5, 3)).shape, seed=1)
    f = compiled(around)
    for got, right in zip(with_gradient(f, x, w), with_gradient(around, x, w), strict=True):
        torch.testing.assert_close(got, right)
    assert len(counters["graph_break"]) == 1


@pytest.mark.slow
def test_one_graph_break_at_a_second_shape():
    f = compiled(lambda x: polarlib.nearest_orthogonal(x + 1) * 2)
    for shape in ((5, 3), (4, 4), (3, 6), (2, 4, 4)):
        x, w = gaussian(*shape), gaussian(*shape, seed=1)
        wanted = with_gradient(lambda x: polarlib.nearest_orthogonal(x + 1) * 2, x, w)
        for got, right in zip(with_gradient(f, x, w), wanted, strict=True):
            torch.testing.assert_close(got, right)


@pytest.mark.parametrize("name", [*SEEN, "nearest_rotation", "spectral lmo", "spectral_clip"])
@pytest.mark.thinned(5)
def test_full_graphs_are_refused(name):
    f = compiled({**SEEN, **UNSEEN}[name], fullgraph=True)
    with pytest.raises(Exception, match=LOOKS):
        f(gaussian(5, 3))


@pytest.mark.slow
def test_wrong_arguments_in_compiled_code():
    x = gaussian(5, 3)
    for wrong, how in (("jordann", {"schedule": "jordann"}), ("'foo'", {"form": "foo"})):
        f = compiled(lambda x, how=how: polarlib.orthogonalize(x, **how), fullgraph=True)
        with pytest.raises(Exception, match=wrong):
            f(x)
        f = compiled(lambda x, how=how: polarlib.orthogonalize(x, **how))
        with pytest.raises(ValueError, match=wrong):
            f(x)
    with pytest.raises(ValueError, match="must be a matrix"):
        compiled(polarlib.orthogonalize)(x[0])
    with pytest.raises(Exception, match="shape of the first array"):
        compiled(lambda x: updates.nesterov(x, x[1:], 0.9), fullgraph=True)(x)


@pytest.mark.slow
def test_out_and_rational_schedules_in_compiled_code():
    x, out = gaussian(5, 3), torch.empty(5, 3, dtype=torch.float64)
    compiled(lambda x, out: polarlib.orthogonalize(x, out=out) * 2)(x, out)
    torch.testing.assert_close(out, polarlib.orthogonalize(x))
    f = compiled(lambda x: polarlib.orthogonalize(x, schedule="halley"))
    torch.testing.assert_close(f(x), polarlib.orthogonalize(x, schedule="halley"))
    with pytest.raises(Exception, match="one operator for schedules of"):
        compiled(lambda x: polarlib.orthogonalize(x, schedule="halley"), fullgraph=True)(x)
    with pytest.raises(Exception, match="reads schedules from a file"):
        compiled(lambda x: len(polarlib.schedule("jordan")) * x, fullgraph=True)(x)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "jacrev", "hessian"])
@pytest.mark.slow
def test_torch_func_in_compiled_code(transform):
    a, e = gaussian(4, 2), gaussian(4, 2, seed=1)

    def cube(x):
        return (polarlib.orthogonalize(x) ** 3).sum()

    f = {
        "vmap": lambda x: torch.vmap(polarlib.orthogonalize)(torch.stack([x, 2 * x])),
        "grad": torch.func.grad(cube),
        "jvp": lambda x: torch.func.jvp(polarlib.orthogonalize, (x,), (e,))[1],
        "jacrev": torch.func.jacrev(polarlib.orthogonalize),
        "hessian": torch.func.hessian(cube),
    }[transform]
    torch.testing.assert_close(compiled(f, fullgraph=True)(a), f(a))


@pytest.mark.slow
def test_second_derivative_of_the_operator_is_refused():
    x = gaussian(4, 2).requires_grad_()
    y = compiled(polarlib.orthogonalize, "eager", fullgraph=True)(x)
    (g,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad((g**2).sum(), x)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler of C++")
def test_inductor():
    def step(x):
        return polarlib.orthogonalize(x * 2).sin()

    x, w = gaussian(6, 4), gaussian(6, 4, seed=1)
    f = compiled(step, "inductor", fullgraph=True)
    for got, right in zip(with_gradient(f, x, w), with_gradient(step, x, w), strict=True):
        torch.testing.assert_close(got, right)


# -- what records for other tensors, or has no entries ---------------------------------------------


class Module(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def exported(f, x):
    return torch.export.export(Module(f), (x,)).module()


def traced(f, x):
    return torch.jit.trace(f, x)


def proxied(f, x):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda x: f(x))(x)


RECORDERS = {"export": exported, "jit.trace": traced, "make_fx": proxied}


@trace_checks
@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.thinned(22)
def test_recorded_for_other_entries(recorder, name):
    f = UNSEEN[name]
    recorded = RECORDERS[recorder](f, gaussian(5, 3))
    x = gaussian(5, 3, seed=1) * 1e3
    torch.testing.assert_close(recorded(x), f(x))


@trace_checks
@pytest.mark.parametrize("recorder", [*RECORDERS, "meta", "fake"])
@pytest.mark.parametrize("name", SEEN)
@pytest.mark.thinned(6)
def test_what_looks_is_not_recorded(recorder, name):
    check_refused(recorder, SEEN[name], gaussian(5, 3))


def check_refused(recorder, f, x):
    hidden = {**RECORDERS, "meta": lambda f, x: f(x.to("meta")), "fake": fake_result}
    with pytest.raises(TypeError, match=f"{LOOKS}, which torch.export, torch.jit.trace"):
        hidden[recorder](f, x)


@trace_checks
@pytest.mark.parametrize("recorder", [*RECORDERS, "meta", "fake"])
@pytest.mark.parametrize("f", [lambda x: polarlib.polar(x)[0], polarlib.nearest_orthogonal])
def test_large_matrices_are_not_recorded_either(recorder, f):
    """Which NumPy could view: a trace would keep the result for the entries of now."""
    check_refused(recorder, f, gaussian(512, 512))


def fake_result(f, x):
    with torch._subclasses.FakeTensorMode() as mode:
        return f(mode.from_tensor(x))


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.thinned(5)
def test_tensors_without_entries(name):
    f, x = UNSEEN[name], gaussian(5, 3)
    y = f(x)
    for z in (f(x.to("meta")), fake_result(f, x)):
        assert (z.shape, z.dtype) == (y.shape, y.dtype)


def test_measure_refuses_tensors_without_entries():
    with pytest.raises(TypeError, match=LOOKS):
        polarlib.measure(gaussian(5, 3).to("meta"), "jordan")


LOAD = """
import sys, torch
from polarlib import orthogonalize
program = torch.export.load(sys.argv[1]).module()
print(program(torch.eye(4, 3, dtype=torch.float64)).sum().item())
"""


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(gaussian(4, 4))

    def forward(self, x):
        w = polarlib.orthogonalize(self.weight, schedule=JORDAN)
        return polarlib.orthogonalize(x) + w.sum()


@pytest.mark.slow
def test_exported_with_any_shape(tmp_path):
    rows, columns = (torch.export.Dim(name, min=2, max=512) for name in ("rows", "columns"))
    layer = Layer()
    program = torch.export.export(layer, (gaussian(5, 3),), dynamic_shapes=({0: rows, 1: columns},))
    for shape in ((5, 3), (3, 9), (7, 7)):
        x, w = gaussian(*shape), gaussian(*shape, seed=1)
        wanted = with_gradient(layer, x, w)
        for got, right in zip(with_gradient(program.module(), x, w), wanted, strict=True):
            torch.testing.assert_close(got, right)
    torch.export.save(program, tmp_path / "program.pt2")
    run = [sys.executable, "-c", LOAD, tmp_path / "program.pt2"]
    told = subprocess.run(run, capture_output=True, text=True, check=True)
    wanted = float(layer(torch.eye(4, 3, dtype=torch.float64)).sum().detach())
    assert float(told.stdout) == pytest.approx(wanted, rel=1e-12)


@trace_checks
@pytest.mark.parametrize("name", ["orthogonalize", "nearest_rotation", "ky_fan lmo"])
@pytest.mark.thinned(3)
def test_gradients_through_a_trace(name):
    f, x = UNSEEN[name], gaussian(5, 3)
    recorded = traced(f, gaussian(5, 3, seed=1).requires_grad_())
    w = gaussian(*f(x).shape, seed=2)
    for got, right in zip(with_gradient(recorded, x, w), with_gradient(f, x, w), strict=True):
        torch.testing.assert_close(got, right)


def test_script_fails_by_itself():
    with pytest.raises(Exception, match=r"variable number of arg|undefined value|Unknown type"):
        torch.jit.script(polarlib.polar)


# -- torch.func in eager mode ----------------------------------------------------------------------

EVERY = {**SEEN, **UNSEEN}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.thinned(4)
def test_vmap_is_one_after_the_other(name):
    f, stack = EVERY[name], gaussian(2, 5, 3)
    each = torch.stack([f(x) for x in stack])
    torch.testing.assert_close(torch.vmap(f)(stack), each)
    torch.testing.assert_close(torch.vmap(f, in_dims=2)(stack.movedim(0, 2)), each)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
@pytest.mark.parametrize("how", [{}, {"schedule": "adaptive"}, {"form": "gram"}, {"heads": 1}])
def test_batched_gradients_of_complex_matrices(shape, how):
    """Under vmap torch has no rule for the imaginary part of a conjugate view."""

    def total(x):
        return polarlib.orthogonalize(x, **how).real.sum()

    stack = torch.complex(gaussian(2, *shape), gaussian(2, *shape, seed=1))
    gradients = torch.vmap(torch.func.grad(total))(stack)
    torch.testing.assert_close(gradients[1], torch.func.grad(total)(stack[1]))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.thinned(6)
def test_derivatives_against_differences(name):
    f, a, e, h = EVERY[name], gaussian(5, 3), gaussian(5, 3, seed=1), 1e-6
    wanted = (f(a + h * e) - f(a - h * e)) / (2 * h)
    near = {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(torch.func.jvp(f, (a,), (e,))[1], wanted, **near)
    w = gaussian(*wanted.shape, seed=2)

    def weighed(x):
        return (f(x) * w).sum()

    gradient = torch.func.grad(weighed)
    torch.testing.assert_close((gradient(a) * e).sum(), (wanted * w).sum(), **near)
    stack = torch.stack([a, 2 * a])
    torch.testing.assert_close(torch.vmap(gradient)(stack)[1], gradient(2 * a))
    second = (gradient(a + h * e) - gradient(a - h * e)) / (2 * h)
    moved = torch.func.jvp(gradient, (a,), (e,))[1]
    torch.testing.assert_close(moved, second, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["polar", "orthogonalize", "spectral lmo"])
@pytest.mark.thinned(3)
def test_jacobians(name):
    f, a = EVERY[name], gaussian(5, 3)
    torch.testing.assert_close(torch.func.jacrev(f)(a), torch.func.jacfwd(f)(a))


@pytest.mark.parametrize("size", [0.01, 1.0, 50.0])
@pytest.mark.parametrize(
    "n", [norms.nuclear(), norms.ky_fan_dual(2), norms.spectral(), norms.lp(1)]
)
@pytest.mark.thinned(4)
def test_derivative_of_projections(n, size):
    a, e, h = gaussian(5, 3) * size, gaussian(5, 3, seed=1), 1e-6 * size
    wanted = (n.project(a + h * e) - n.project(a - h * e)) / (2 * h)
    got = torch.func.jvp(n.project, (a,), (e,))[1]
    torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-6)


# -- tensors out of the ordinary -------------------------------------------------------------------

TAKES = {
    "orthogonalize": polarlib.orthogonalize,
    "orthogonalize_all": lambda x: polarlib.orthogonalize_all([x]),
    "polar": polarlib.polar,
    "nearest_orthogonal": polarlib.nearest_orthogonal,
    "nearest_rotation": polarlib.nearest_rotation,
    "procrustes": lambda x: polarlib.procrustes(torch.eye(4), x),
    "sqrtm_psd": polarlib.sqrtm_psd,
    "inverse_root": lambda x: polarlib.inverse_root(x, 2),
    "top_singular": lambda x: polarlib.top_singular(x, 1),
    "lmo": norms.spectral().lmo,
    "scaled lmo": norms.rms_to_rms(4, 4).lmo,
    "value": norms.nuclear(),
    "spectral_clip": lambda x: spectral_maps.spectral_clip(x, 1.0),
    "measure": lambda x: polarlib.measure(x, "jordan"),
}
NOT_DENSE = {
    "coo": (lambda x: x.to_sparse(), r"is sparse .*\.to_dense\(\)"),
    "csr": (lambda x: x.to_sparse_csr(), r"is sparse .*\.to_dense\(\)"),
    "bsr": (lambda x: x.to_sparse_bsr((2, 2)), r"is sparse .*\.to_dense\(\)"),
    "mkldnn": (lambda x: x.to_mkldnn(), r"not a dense tensor .*\.to_dense\(\)"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        r"quantised .*\.dequantize\(\)",
    ),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), r"nested .*\.unbind\(\)"),
    "jagged": (
        lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
        r"nested .*\.unbind\(\)",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_tensors_that_are_not_dense_are_refused(kind):
    make, message = NOT_DENSE[kind]
    x = make(definite(gaussian(4, 4, dtype="float32")))
    for f in TAKES.values():
        with pytest.raises(TypeError, match=message):
            f(x)


class Tagged(torch.Tensor):
    """A subclass that adds nothing."""


ORDINARY = {
    "parameter": torch.nn.Parameter,
    "subclass": lambda x: x.as_subclass(Tagged),
    "transposed": lambda x: x.mT.contiguous().mT,
    "conjugate view": lambda x: torch.complex(x, x.flip(0)).conj(),
    "negative view": lambda x: torch._neg_view(x),
    "slice": lambda x: torch.cat([x, x], 1)[:, ::2],
    "inference": lambda x: torch.inference_mode()(lambda: x.clone())(),
    "integers": lambda x: (10 * x).int(),
    "booleans": lambda x: x > 0,
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_views_and_subclasses(kind):
    x = ORDINARY[kind](gaussian(6, 4))
    with torch.no_grad():
        plain = x.detach().clone().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
        before = plain.clone()
        if not plain.is_floating_point() and not plain.is_complex():
            plain = plain.double()
        for f in (
            polarlib.orthogonalize,
            polarlib.nearest_orthogonal,
            norms.spectral().lmo,
            lambda x: polarlib.top_singular(x, 2)[1],
        ):
            y = f(x).as_subclass(torch.Tensor)
            torch.testing.assert_close(y, f(plain.contiguous()), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(x.as_subclass(torch.Tensor), before, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
@pytest.mark.parametrize("given_as", ["whole", "conjugate view"])
def test_results_are_read_by_numpy(shape, given_as):
    """NumPy, DLPack and view_as_real read no tensor with the conjugate bit."""
    x = torch.complex(gaussian(*shape), gaussian(*shape, seed=1))
    x = x if given_as == "whole" else x.conj()
    for y in (
        polarlib.polar(x).unitary,
        polarlib.nearest_orthogonal(x),
        polarlib.orthogonalize(x),
        polarlib.orthogonalize(x, form="gram"),
        *polarlib.svd_polar(x),
        *polarlib.top_singular(x, 2),
    ):
        assert np.asarray(y).dtype == (np.complex128 if y.is_complex() else np.float64)


def test_eight_bits_meet_other_formats():
    x = gaussian(5, 3, dtype="float32")
    q = polarlib.procrustes(x, x.to(torch.float8_e5m2))
    assert q.dtype == torch.float32


# -- no matrices, or no entries --------------------------------------------------------------------

EMPTY = {
    **{k: f for k, f in UNSEEN.items() if not k.startswith(("nearest", "inverse", "rms"))},
    "polar": SEEN["polar"],
    "polar, hermitian": SEEN["polar, hermitian"],
    "polar, left": lambda x: polarlib.polar(x, "left").hermitian,
    "nearest_orthogonal": SEEN["nearest_orthogonal"],
    "procrustes": lambda x: polarlib.procrustes(x, x),
}
SQUARE = {
    "nearest_rotation": polarlib.nearest_rotation,
    "sqrtm_psd": polarlib.sqrtm_psd,
    "inverse_root": lambda x: polarlib.inverse_root(x, 2),
    "rms_to_rms": norms.rms_to_rms(4, 4).lmo,
}


@pytest.mark.parametrize("library", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (4, 0), (2, 0, 0)])
def test_empty_matrices_stay_in_the_graph(library, shape):
    jax = pytest.importorskip("jax") if library == "jax" else None
    functions = {**EMPTY, **(SQUARE if shape == (0, 4, 4) else {})}
    if shape[0] == 0:
        functions["top_singular"] = lambda x: polarlib.top_singular(x, 1)[1]
    if jax is not None:  # tensors among what these make
        del functions["orthogonalize_all"], functions["procrustes, rotation"]
    for f in functions.values():
        if jax is None:
            x = torch.zeros(shape, requires_grad=True)
            y = f(x)
            assert y.requires_grad
            y.sum().backward()
            assert x.grad.shape == shape
        else:
            g = jax.grad(lambda x, f=f: f(x).sum())(jax.numpy.zeros(shape))
            assert g.shape == shape


# -- devices without double precision, as Apple's --------------------------------------------------


class NoDouble(torch.utils._python_dispatch.TorchDispatchMode):
    """Operations on tensors of double precision raise, as on Metal, but for those on the host."""

    on_host = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(results):
            wide = isinstance(t, torch.Tensor) and t.dtype in (torch.float64, torch.complex128)
            if wide and not self.on_host:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return results


@pytest.fixture
def no_double(monkeypatch):
    mode = NoDouble()

    def on_host(f):
        def run(*args, **kwargs):
            mode.on_host += 1
            try:
                return f(*args, **kwargs)
            finally:
                mode.on_host -= 1

        return run

    monkeypatch.setattr(torch_ops, "has_double", lambda device: False)
    off_the_host(monkeypatch)
    for name in ("to_host", "from_host"):
        monkeypatch.setattr(torch_ops.TorchOps, name, on_host(getattr(torch_ops.TorchOps, name)))
    return mode


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.thinned(2)
def test_without_double_precision(no_double, name):
    x, f = gaussian(5, 3, dtype="float32"), EVERY[name]
    y = f(x)
    with no_double:
        z = f(x)
    torch.testing.assert_close(z, y)
    with no_double:
        assert f((10 * x).int()).dtype == torch.float32


class There(torch.Tensor):
    """A tensor that says that it lies on a device."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("name", ["qr", "cholesky", "inverse", "svd", "eigh", "singular_values"])
def test_what_a_device_lacks_is_factorised_on_the_host(monkeypatch, name):
    x = definite(gaussian(5, 3))
    ops = seam.ops_of(x)
    wanted = getattr(ops, name)(x)
    there = torch_ops.TorchOps(ops.xp, torch.device("mps"), host=False)
    moved = []

    def to(self, device):  # there is no such device
        moved.append(device)
        return self

    def lacks(ops, x):
        if isinstance(x, There):
            raise NotImplementedError("not implemented for this device")

    lacks.__name__ = name
    monkeypatch.setattr(torch.Tensor, "to", to)
    results = there._where_it_can(lacks, x.as_subclass(There))
    torch.testing.assert_close(results, wanted)
    assert set(moved) == {torch.device("mps")}
    with pytest.raises(NotImplementedError):  # on the host there is nowhere to go
        ops._where_it_can(lacks, x.as_subclass(There))
