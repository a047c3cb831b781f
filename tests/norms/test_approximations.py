"""LMOs of blocks, block-periodic ones, and Dion's update: definitions, bounds, what is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DTYPES, HALF, Library, library, with_dask

import polarlib
from polarlib import norms, testing
from polarlib.files import sample_matrices
from polarlib.norms import block_periodic, per_block
from polarlib.updates import dion

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7} | {d: float(np.finfo(d).eps) for d in DTYPES}
GRIDS = [(1, 1), (3, 1), (1, 4), (3, 2), (6, 4)]
SPECTRAL = norms.spectral()


def gaussian(*shape, seed=0, dtype="float64"):
    a = np.random.default_rng(seed).standard_normal((2, *shape))
    return (a[0] + 1j * a[1] if dtype.startswith("complex") else a[0]).astype(dtype)


def one_dtype_of_jax(lib, dtype):
    if lib.name == "jax" and dtype != "complex64":
        pytest.skip("JAX compiles every operation anew for every dtype: one of them will do")


def places(shape, rows, columns):
    """The slices of every block."""
    m, n = shape[-2] // rows, shape[-1] // columns
    for i in range(rows):
        for j in range(columns):
            yield ..., slice(i * m, (i + 1) * m), slice(j * n, (j + 1) * n)


def in_blocks(g, rows, columns):
    """Block after block, by NumPy's SVD."""
    t = np.zeros_like(g)
    for place in places(g.shape, rows, columns):
        u, _, vh = np.linalg.svd(g[place], full_matrices=False)
        t[place] = u @ vh
    return t


def nuclear(g):
    return np.linalg.svd(g, compute_uv=False).sum(-1)


# -- blocks ----------------------------------------------------------------------------------


@with_dask
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 8), (12, 4), (2, 6, 4)], ids=str)
@pytest.mark.thinned(7)
def test_every_block_is_its_polar_factor(lib, shape, dtype):
    one_dtype_of_jax(lib, dtype)
    g = gaussian(*shape, dtype=dtype)
    # JAX compiles an SVD for every shape of a block.
    for rows, columns in GRIDS[3:4] if lib.name == "jax" else GRIDS:
        x = lib.asarray(g)
        t = per_block(x, rows, columns)
        assert lib.dtype_name(t) == dtype
        want = in_blocks(g, rows, columns)
        np.testing.assert_allclose(lib.to_numpy(t), want, rtol=0, atol=1e3 * EPS[dtype])
        np.testing.assert_array_equal(lib.to_numpy(x), g)


def test_blocks_of_rows_are_heads():
    g = gaussian(12, 5)
    for schedule in ("polar_express", "jordan", polarlib.schedule("cans")):
        want = polarlib.orthogonalize(g, schedule=schedule, heads=3)
        t = per_block(g, 3, polar=schedule)
        np.testing.assert_allclose(t, want, rtol=0, atol=1e-12)
    want = polarlib.orthogonalize(g, heads=4)
    np.testing.assert_allclose(per_block(g, 4, polar=polarlib.orthogonalize), want, atol=1e-12)
    turned = per_block(g.T, columns=4, polar=polarlib.orthogonalize).T
    np.testing.assert_allclose(turned, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["transformer_attention_qkv_early", "digits_hidden2_late"])
def test_bounds_of_blocks(name):
    """Of the theory of blocks: lengths, inner products and the loss."""
    g = np.float64(sample_matrices()[name])
    for rows, columns in [(1, 1), (2, 1), (8, 1), (1, 4), (4, 4)]:
        t = per_block(g, rows, columns)
        length, inner = np.linalg.norm(t, 2), np.sum(g * t)
        assert 1 - 1e-12 <= length <= (rows * columns) ** 0.5 + 1e-12
        total = sum(nuclear(g[place]) for place in places(g.shape, rows, columns))
        np.testing.assert_allclose(inner, total, rtol=1e-12)
        assert inner >= nuclear(g) * (1 - 1e-12)
        gap = norms.duality_gap(SPECTRAL, g, t)
        assert gap <= 1 - (rows * columns) ** -0.5 + 1e-12


def test_equal_blocks_have_the_largest_norm():
    t = per_block(np.tile(gaussian(4, 3), (2, 3)), 2, 3)
    np.testing.assert_allclose(np.linalg.norm(t, 2), 6**0.5, rtol=1e-13)
    # Blocks of rows that are not wide have it always: their Gram matrices are all the identity.
    t = per_block(gaussian(12, 3), 3)
    np.testing.assert_allclose(np.linalg.norm(t, 2), 3**0.5, rtol=1e-13)


def test_nothing_with_blocks_of_norm_one_is_better():
    g = gaussian(6, 4)
    best = np.sum(g * per_block(g, 3, 2))
    for seed in range(200):
        x = gaussian(6, 4, seed=seed + 1)
        for place in places(x.shape, 3, 2):
            x[place] /= np.linalg.norm(x[place], 2)
        assert np.sum(g * x) < best


def test_a_block_is_not_affected_by_the_others(lib):
    g = gaussian(6, 4)
    g[:2] *= 1e-150
    g[2:4] *= 1e150
    g[4:, :2] = 0
    t = lib.to_numpy(per_block(lib.asarray(g), 3, 2))
    assert not t[4:, :2].any()
    np.testing.assert_allclose(t[:4], in_blocks(g[:4], 2, 2), atol=1e-12)
    for shape in ((0, 4), (6, 0), (0, 6, 4)):
        assert tuple(per_block(lib.asarray(np.ones(shape)), 3, 2).shape) == shape


@pytest.mark.parametrize("dtype", HALF)
def test_blocks_in_half_precision(lib, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    x = lib.asarray(gaussian(6, 4), dtype)
    want = in_blocks(np.float64(lib.to_numpy(x)), 3, 2)
    t = per_block(x, 3, 2)
    scaled = block_periodic(x, 1, 2, rows=3, columns=2, factor=0.3)
    for got, scale in ((t, 1.0), (scaled, 0.3)):
        assert lib.dtype_name(got) == dtype
        np.testing.assert_allclose(lib.to_numpy(got), scale * want, rtol=0, atol=EPS[dtype])


# -- block-periodic --------------------------------------------------------------------------


def test_one_step_of_a_period_is_whole(lib):
    g = gaussian(6, 4)
    x, whole, blocks = lib.asarray(g), in_blocks(g, 1, 1), in_blocks(g, 3, 2)
    for k in range(7):
        t = block_periodic(x, k, 3, rows=3, columns=2, factor=0.25)
        want = 0.25 * blocks if k % 3 else whole
        np.testing.assert_allclose(lib.to_numpy(t), want, rtol=0, atol=1e-12)
    for k in range(3):
        t = block_periodic(x, k, 1, rows=3)
        np.testing.assert_allclose(lib.to_numpy(t), whole, rtol=0, atol=1e-12)


def test_factor_for_equal_sizes_of_entries():
    """The documented factor: blocks and the whole matrix change entries by as much."""
    g, f = gaussian(24, 16), norms.update_scale
    for rows, columns in [(2, 1), (1, 4), (4, 4), (8, 2)]:
        factor = f(24 // rows, 16 // columns, "moonlight") / f(24, 16, "moonlight")
        t = [block_periodic(g, k, 2, rows=rows, columns=columns, factor=factor) for k in range(2)]
        np.testing.assert_allclose(np.linalg.norm(t[1]), np.linalg.norm(t[0]), rtol=1e-12)


def test_two_step_sizes_give_the_harmonic_mean():
    """The bound of the docstring, over all ratios: least at L / L_B, with the value given there."""
    period, smooth, smooth_b = 5, 1.0, 3.0
    share = np.array([1 / period, 1 - 1 / period])

    def bound(ratio):  # least over the step size of (1 / s + s weight / 2), by its progress
        weight = share @ np.array([smooth, smooth_b * ratio**2])
        return np.sqrt(2 * weight) / (share @ np.array([1.0, ratio]))

    ratios = np.linspace(0.01, 2, 2000)
    values = np.array([bound(r) for r in ratios])
    np.testing.assert_allclose(ratios[values.argmin()], smooth / smooth_b, atol=1e-3)
    harmonic = 1 / (share @ np.array([1 / smooth, 1 / smooth_b]))
    np.testing.assert_allclose(bound(smooth / smooth_b), np.sqrt(2 * harmonic), rtol=1e-12)
    arithmetic = share @ np.array([smooth, smooth_b])
    np.testing.assert_allclose(bound(1.0), np.sqrt(2 * arithmetic), rtol=1e-12)


BAD = {
    "rows must divide the number of rows of g, got rows=4 for 6; append": {"rows": 4},
    "columns must divide the number of columns of g, got columns=3 for 4": {"columns": 3},
    "rows must be an integer of at least 1, got 0": {"rows": 0},
    "columns must be an integer of at least 1, got 1.5": {"columns": 1.5},
    "qwdh.*did you mean": {"polar": "qwdh"},
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_blocks(message):
    g = gaussian(6, 4)
    with pytest.raises(ValueError, match=message):
        per_block(g, **BAD[message])
    for k in (0, 1):  # in whole steps too
        with pytest.raises(ValueError, match=message):
            block_periodic(g, k, 2, **BAD[message])


def test_wrong_arguments():
    g = gaussian(6, 4)
    with pytest.raises(ValueError, match="k must be an integer of at least 0, got -1"):
        block_periodic(g, -1, 2)
    with pytest.raises(ValueError, match="period must be an integer of at least 1, got 0"):
        block_periodic(g, 0, 0)
    with pytest.raises(ValueError, match="factor must be a number above 0, got 0"):
        block_periodic(g, 0, 2, factor=0)
    with pytest.raises(TypeError, match="polar must be a function"):
        per_block(g, polar=3)
    with pytest.raises(ValueError, match="g must be a matrix"):
        per_block(g[0])
    g[5, 1] = np.nan
    for polar in (None, "polar_express"):
        with pytest.raises(ValueError, match=r"^g .*NaN .* 1 of 24 .*index \(5, 1\)"):
            per_block(g, 2, polar=polar)


# -- Dion ------------------------------------------------------------------------------------


def published(m, g, q, mu):
    """Algorithm 1, line by line."""
    b = m + g
    p, _ = np.linalg.qr(b @ q)
    r = b.conj().swapaxes(-1, -2) @ p
    q = r / np.linalg.norm(r, axis=-2, keepdims=True)
    adjoint = q.conj().swapaxes(-1, -2)
    return p @ adjoint, b - (1 - mu) * p @ r.conj().swapaxes(-1, -2), q


@with_dask
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 8), (12, 4), (2, 6, 4)], ids=str)
@pytest.mark.thinned(7)
def test_dion_is_algorithm_1(lib, shape, dtype):
    one_dtype_of_jax(lib, dtype)
    m, q = np.zeros(shape, dtype), gaussian(*shape[:-2], shape[-1], 3, seed=9, dtype=dtype)
    want, state = (m, q), (lib.asarray(m), lib.asarray(q))
    for seed in range(3):
        g = gaussian(*shape, seed=seed, dtype=dtype)
        update, *state = dion(state[0], lib.asarray(g), state[1], mu=0.8)
        expected, *want = published(*want[:1], g, *want[1:], 0.8)
        assert {lib.dtype_name(x) for x in (update, *state)} == {dtype}
        for found, exact in zip((update, *state), (expected, *want), strict=True):
            atol = 200 * EPS[dtype] * np.abs(exact).max()
            np.testing.assert_allclose(lib.to_numpy(found), exact, rtol=0, atol=atol)


def test_what_is_applied_and_what_is_kept():
    """In the range of the update a part 1 - mu is removed, and nothing elsewhere."""
    m, g, q = gaussian(9, 7), gaussian(9, 7, seed=1), gaussian(7, 3, seed=2)
    update, new, _ = dion(m, g, q, mu=0.7)
    left, s, _ = np.linalg.svd(update)
    assert s[2] > 1e-3
    assert s[3] < 1e-13
    inside = left[:, :3] @ left[:, :3].T
    np.testing.assert_allclose(inside @ new, 0.7 * inside @ (m + g), atol=1e-13)
    np.testing.assert_allclose(new - inside @ new, (m + g) - inside @ (m + g), atol=1e-13)
    assert 1 <= s[0] <= 3**0.5


def test_full_rank_is_heavy_ball_momentum():
    m = b = np.zeros((6, 4))
    q = gaussian(4, 4)
    for seed in range(4):
        g = gaussian(6, 4, seed=seed)
        b = 0.9 * (b + g)
        _, m, q = dion(m, g, q, mu=0.9)
        np.testing.assert_allclose(m, b, atol=1e-13)


def test_feedback_applies_every_direction():
    """A constant gradient of rank 6 by steps of rank 2: with feedback all of it is applied."""
    g, q0 = testing.with_singular_values([8.0, 4, 3, 2, 1.5, 1], 10, 6), gaussian(6, 2)
    removed = {}
    for feedback in (True, False):
        m, q, total = np.zeros((10, 6)), q0, np.zeros((10, 6))
        for _ in range(200):
            before = (m if feedback else np.zeros_like(m)) + g
            _, m, q = dion(before - g, g, q, mu=0.5)
            total = total + before - m
        removed[feedback] = np.linalg.norm(total / 200 - 0.5 ** (not feedback) * g)
    assert removed[True] < 0.1 * np.linalg.norm(g)
    # Without it the four smaller singular values never are.
    np.testing.assert_allclose(removed[False], 0.5 * np.hypot.reduce([3, 2, 1.5, 1]), rtol=0.02)


def test_zero_and_low_rank(lib):
    q, zero = np.linalg.qr(gaussian(4, 2))[0], np.zeros((6, 4))
    update, m, basis = dion(*map(lib.asarray, (zero, zero, q)))
    assert not lib.to_numpy(update).any()
    assert not lib.to_numpy(m).any()
    np.testing.assert_array_equal(lib.to_numpy(basis), q)
    g = np.outer(np.arange(1.0, 7), np.ones(4))
    for scale in (1.0, 1e-250, 1e250):
        update, m, _ = dion(*map(lib.asarray, (zero, scale * g, q)), mu=0.75)
        np.testing.assert_allclose(lib.to_numpy(update), g / np.linalg.norm(g), atol=1e-13)
        np.testing.assert_allclose(lib.to_numpy(m) / scale, 0.75 * g, rtol=1e-12)


def test_nan_of_one_matrix_stays_there(lib):
    m, g, q = gaussian(2, 6, 4), gaussian(2, 6, 4, seed=1), gaussian(2, 4, 3)
    wanted = dion(m, g, q)
    g[1, 0, 0] = np.nan
    for got, want in zip(dion(*map(lib.asarray, (m, g, q))), wanted, strict=True):
        np.testing.assert_allclose(lib.to_numpy(got)[0], want[0], atol=1e-13)
        assert np.isnan(lib.to_numpy(got)[1]).all()


@pytest.mark.parametrize("dtype", HALF)
def test_dion_in_half_precision_is_rounded_once(lib, dtype):
    if not lib.has(dtype):
        pytest.skip(f"{lib.name} has no {dtype}")
    arrays = gaussian(6, 4), gaussian(6, 4, seed=1), gaussian(4, 2, seed=2)
    given = [lib.asarray(a, dtype) for a in arrays]
    update, m, q = dion(*given)
    assert {lib.dtype_name(x) for x in (update, m, q)} == {dtype}
    want = published(*(np.float64(lib.to_numpy(a)) for a in given), 0.95)
    assert np.abs(lib.to_numpy(m) - want[1]).max() <= 0.51 * EPS[dtype] * np.abs(want[1]).max()
    # The update is that of the basis that is kept.
    assert np.abs(lib.to_numpy(update) - want[0]).max() <= 2 * EPS[dtype]


def test_dion_of_complex_and_mixed():
    m, g = gaussian(6, 4, dtype="complex128"), gaussian(6, 4, seed=1)
    got = dion(m, g, gaussian(4, 2))
    for found, want in zip(got, published(m, g, gaussian(4, 2), 0.95), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-13)
    update, new, _ = dion(m.real.astype("float32"), g, gaussian(4, 2))
    assert {update.dtype.name, new.dtype.name} == {"float32"}


def test_wrong_arguments_of_dion(torch):
    m, q = np.zeros((5, 4)), np.ones((4, 2))
    for mu in (1, -0.1, np.nan, "0.9", None):
        with pytest.raises(ValueError, match="mu must be a number of at least 0 and below 1, got"):
            dion(m, m, q, mu=mu)
    with pytest.raises(ValueError, match=r"g must have the shape .*, \(5, 4\), got \(4, 5\)"):
        dion(m, m.T, q)
    with pytest.raises(ValueError, match=r"q must have 4 rows and from 1 to 4 .* got shape \(5, 2"):
        dion(m, m, np.ones((5, 2)))
    stack = np.stack([m] * 3)
    assert dion(stack, stack, q)[2].shape == (3, 4, 2)
    with pytest.raises(ValueError, match=r"q must have the leading axes of m, \(\), or none, got"):
        dion(m, m, np.stack([q] * 3))
    for lib in (np.asarray, torch.tensor):  # the libraries' own errors are of two types
        with pytest.raises(ValueError, match=r"m and q must broadcast, got \(3,\) and \(2,\)"):
            norms.power_step(lib(stack), lib(np.stack([q] * 2)))
    with pytest.raises(ValueError, match=r"m must have rows and columns, got shape \(0, 4\)"):
        dion(m[:0], m[:0], q)
    with pytest.raises(ValueError, match="m must be a matrix"):
        dion(m[0], m[0], q)
    with pytest.raises(TypeError, match=r"q must be an array of a supported library, got \[\[1"):
        dion(m, m, [[1.0]] * 4)
    with pytest.raises(TypeError, match="q must be real like m, got complex128; convert m"):
        dion(m, m, q * 1j)
    with pytest.raises(TypeError, match="the first array must be of a floating dtype, got int64"):
        dion(m.astype(int), m, q)
    with pytest.raises(TypeError, match="of one library, got numpy and torch"):
        dion(m, m, torch.ones(4, 2))


# -- derivatives and compilers ---------------------------------------------------------------


def test_derivatives_of_torch(torch):
    m, g, q = (torch.tensor(gaussian(*s)).requires_grad_() for s in ((6, 4), (6, 4), (4, 2)))
    assert torch.autograd.gradcheck(lambda g: per_block(g, 3, 2), (g,))
    assert torch.autograd.gradcheck(lambda g: block_periodic(g, 1, 2, rows=2, factor=0.5), (g,))
    assert torch.autograd.gradcheck(dion, (m, g * 2 + 1, q))
    wanted = dion(m, g, q)
    for got, want in zip(torch.vmap(dion)(m[None], g[None], q[None]), wanted, strict=True):
        torch.testing.assert_close(got[0], want)


def test_torch_compile_records_all_of_it(torch):
    m, g, q = (torch.tensor(gaussian(*s)) for s in ((6, 4), (6, 4), (4, 2)))
    schedule = polarlib.schedule("jordan", 2)
    functions = (
        lambda m, g, q: dion(m, g, q),
        lambda m, g, q: per_block(g, 3, 2, polar=schedule),
        lambda m, g, q: block_periodic(g, 1, 2, columns=2, factor=0.5, polar=schedule),
        lambda m, g, q: norms.power_step(m, q),
    )
    for f in functions:
        got = torch.compile(f, backend="eager", fullgraph=True)(m, g, q)
        torch.testing.assert_close(got, f(m, g, q))


def test_under_jit():
    jax = pytest.importorskip("jax")
    lib = Library("jax")
    arrays = gaussian(6, 4), gaussian(6, 4, seed=1), gaussian(4, 2)
    given = [library("jax").asarray(a) for a in arrays]
    for got, want in zip(jax.jit(dion)(*given), dion(*arrays), strict=True):
        np.testing.assert_allclose(lib.to_numpy(got), want, atol=1e-12)
    step = jax.jit(
        lambda g, k: block_periodic(g, k, 2, rows=3, columns=2, polar="jordan"), static_argnums=1
    )
    for k in (0, 1):
        want = block_periodic(arrays[0], k, 2, rows=3, columns=2, polar="jordan")
        np.testing.assert_allclose(lib.to_numpy(step(given[0], k)), want, atol=1e-12)
    with pytest.raises(ValueError, match="k must be an integer of at least 0, got"):
        jax.jit(lambda g, k: block_periodic(g, k, 2))(given[0], 1)


ON_DEVICES = """
import warnings
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from polarlib.norms import per_block

jax.config.update("jax_enable_x64", True)
assert len(jax.devices()) == 4
tall = np.random.default_rng(0).standard_normal((16, 8))
for axes in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(axes,))
    jax.set_mesh(mesh)
    for spec, grid, g in (
        (("d", None), (4, 1), tall),
        ((None, "d"), (1, 4), tall.T),
        ((None, "d"), (1, 4), tall),
    ):
        x = jax.device_put(g, NamedSharding(mesh, PartitionSpec(*spec)))
        for polar in (None, "polar_express"):
            f = jax.jit(lambda x: per_block(x, *grid, polar=polar))
            y = f(x)
            assert y.sharding.is_equivalent_to(x.sharding, 2), y.sharding
            np.testing.assert_allclose(y, per_block(g, *grid, polar=polar), atol=1e-12)
            text = f.lower(x).compile().as_text()
            kinds = "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"
            sent = [s for s in kinds if s in text]
            assert not sent, (axes, spec, polar, sent)
    # Blocks that are on several devices: a warning, and the sharding of the input.
    x = jax.device_put(tall, NamedSharding(mesh, PartitionSpec("d", None)))
    for polar in (None, "polar_express"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = per_block(x, 2, polar=polar)
            z = jax.jit(lambda x: per_block(x, 2, polar=polar))(x)
        assert y.sharding == x.sharding, y.sharding
        assert z.sharding.is_equivalent_to(x.sharding, 2), z.sharding
        np.testing.assert_allclose(y, per_block(tall, 2, polar=polar), atol=1e-12)
        np.testing.assert_allclose(z, y, atol=1e-12)
        (message, *_) = (str(w.message) for w in caught)
        # Each of 4 devices has a quarter of 1024 bytes, and receives the others.
        assert "2 x 1 blocks are not whole on the devices: gathers 0.00077 MB per" in message
"""


IN_PROCESSES = """
import datetime, sys, tempfile, warnings
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from polarlib.norms import per_block

RANKS = 4
W = torch.arange(128.0, dtype=torch.float64).reshape(16, 8)


class Sizes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if any(issubclass(t, torch.distributed.tensor.DTensor) for t in types):
            return NotImplemented
        if "c10d" in str(f):
            given = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
            self.sent += [t.numel() for t in given if isinstance(t, torch.Tensor)]
        return f(*args, **(kwargs or {}))


def rank(r, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=r,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    g = torch.tensor(np.random.default_rng(0).standard_normal((16, 8)))
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    for mesh, places, grid, local in (
        (line, [Shard(0)], (4, 1), True),
        (line, [Shard(0)], (8, 2), True),
        (line, [Shard(1)], (1, 4), True),
        (square, [Shard(0), Shard(1)], (2, 2), True),
        (line, [Shard(0)], (2, 1), False),
        (line, [Shard(0)], (1, 4), False),
    ):
        def f(x):
            return per_block(x, *grid, polar="polar_express")

        x, w = (distribute_tensor(y, mesh, places) for y in (g, W))
        x.requires_grad_()
        with warnings.catch_warnings(record=True) as caught, Sizes() as sizes:
            warnings.simplefilter("always")
            t = f(x)
        assert t.placements == x.placements, t.placements
        torch.testing.assert_close(t.full_tensor(), f(g))
        (t * w).sum().backward()
        whole = g.clone().requires_grad_()
        (f(whole) * W).sum().backward()
        torch.testing.assert_close(x.grad.full_tensor(), whole.grad)
        assert local != any("blocks are not whole" in str(c.message) for c in caught), caught
        # The check for NaN sends one number of each block on CPUs. A shard has 32 entries.
        assert (max(sizes.sent, default=0) <= 16) == local, sizes.sent
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank, args=(folder,), nprocs=RANKS)
"""


def run(script, tmp_path, **environment):
    """Run a script in a process that is ended if it hangs."""
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    path = os.pathsep.join([str(Path(polarlib.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "script.py"],
        env=os.environ | {"PYTHONPATH": path} | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_blocks_of_devices_send_nothing(tmp_path):
    """Sharded over four devices of JAX, one block each: no collective in the program."""
    pytest.importorskip("jax")
    flags = "--xla_force_host_platform_device_count=4"
    run(ON_DEVICES, tmp_path, XLA_FLAGS=flags, NPROC="32")  # as tests/arrays/test_jax_sharded.py


@pytest.mark.slow
def test_blocks_of_dtensors_stay_on_their_processes(tmp_path):
    """Values, placements and gradients on four processes; a warning where blocks are spread."""
    pytest.importorskip("torch")
    run(IN_PROCESSES, tmp_path)
