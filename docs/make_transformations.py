"""docs/evidence/transformations.md: which functions accept torch's and JAX's transformations.

    python docs/make_transformations.py
    python docs/make_transformations.py --page

The first calls every function under every transformation, each library in its own process, and
writes the outcomes to docs/data/transformations.json and the page from that file. ``--page`` calls
nothing and makes the page. ``--check`` compares instead of writing. A value is correct only if it
is that of the plain call (of a call in NumPy, for a sharded array), and a derivative only if
central differences of the plain call agree.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import polarlib
from polarlib import manifold, norms

PAGE = Path(__file__).parent / "evidence" / "transformations.md"
PACKAGE = Path(polarlib.__file__).parent
DATA = Path(__file__).parent / "data" / "transformations.json"
WORKS = "works"
GATHERED = "works, and every device has all of the result"
PARTS = ("torch", "jax", "mesh", "dtensor")
RANKS = 2  # processes or devices of sharded arrays

TALL = (6, 3)
SQUARE = (3, 3)
Function = Callable[[Any], Any]


def definite(x: Any) -> Any:
    """Return a positive definite matrix of x, by sums, which no precision setting affects."""
    if x.shape[0] > x.shape[1]:
        return (x.conj()[:, :, None] * x[:, None, :]).sum(0)
    return (x[:, None, :] * x.conj()[None, :, :]).sum(2)


def aligned_shapes(x: Any) -> Any:
    """Return two sweeps over one cloud per column, in a form for every transformation."""
    a = definite(x)
    clouds = (a[:, :, None] - a[:, None, :]) ** 2
    found = polarlib.generalized_procrustes(clouds, rtol=0, max_iterations=2)
    return found.mean, found.objective


def not_normal(x: Any) -> Any:
    """Return a matrix of x that is not normal, with positive eigenvalues."""
    a = definite(x)
    return a * (9 + a[:1])


def moved(x: Any) -> Any:
    """Return the solution of a Procrustes problem, or x Q where that alone is unique."""
    q = polarlib.procrustes(x, 2 * x + 1)
    return q if x.shape[-2] >= x.shape[-1] else x @ q


def shapes_and_functions() -> dict[str, tuple[tuple[int, int], Function]]:
    """Return every function of the table: the shape of its matrix, and its call."""
    polar_express = polarlib.schedule("polar_express")
    return {
        "orthogonalize": (TALL, polarlib.orthogonalize),
        "orthogonalize, form='gram'": (TALL, lambda x: polarlib.orthogonalize(x, form="gram")),
        "orthogonalize, schedule='halley'": (
            TALL,
            lambda x: polarlib.orthogonalize(x, schedule="halley"),
        ),
        "orthogonalize_all": (
            TALL,
            lambda x: sum(polarlib.orthogonalize_all([x, x + 1, 2 * x])),
        ),
        "polar": (TALL, lambda x: tuple(polarlib.polar(x))),
        **{
            f"polar, method={name!r}": (
                TALL,
                lambda x, name=name: tuple(polarlib.polar(x, method=name)),
            )
            for name in ("svd", "qdwh", "newton_schulz")
        },
        "polar, schedule": (
            TALL,
            lambda x: tuple(polarlib.polar(x, method=polar_express)),
        ),
        "nearest_orthogonal": (TALL, polarlib.nearest_orthogonal),
        "nearest_rotation": (SQUARE, polarlib.nearest_rotation),
        "procrustes": (TALL, moved),
        "procrustes, rotation=True": (
            TALL,
            lambda x: polarlib.procrustes(x, 2 * x + 1, rotation=True),
        ),
        "align": (
            SQUARE,
            lambda x: tuple(vars(polarlib.align(x, 2 * x * x + 1, scale=True)).values())[-2::-1],
        ),
        "generalized_procrustes, rtol=0": (TALL, aligned_shapes),
        "manifold.tangent": (TALL, lambda x: manifold.tangent(x, 2 * x + 1)),
        "manifold.retract": (TALL, lambda x: manifold.retract(x, 2 * x + 1)),
        "manifold.retract, schedule": (
            TALL,
            lambda x: manifold.retract(x, 2 * x + 1, schedule="newton_schulz_5"),
        ),
        "manifold.inverse_retract": (TALL, lambda x: manifold.inverse_retract(x, 2 * x)),
        "sqrtm_psd": (TALL, lambda x: polarlib.sqrtm_psd(definite(x))),
        "sqrtm": (TALL, lambda x: polarlib.sqrtm(not_normal(x))),
        "signm": (SQUARE, polarlib.signm),
        "inverse_root": (TALL, lambda x: polarlib.inverse_root(definite(x), 2)),
        "svd_polar": (TALL, lambda x: polarlib.svd_polar(x)[1]),
        "eigh_polar": (TALL, lambda x: polarlib.eigh_polar(definite(x))[0]),
        "top_singular": (TALL, lambda x: polarlib.top_singular(x, 2)[1]),
        "spectral().lmo": (TALL, lambda x: norms.spectral().lmo(x)),
        "nuclear()": (TALL, lambda x: norms.nuclear()(x)),
        "ky_fan(2).lmo": (TALL, lambda x: norms.ky_fan(2).lmo(x)),
        "fanion(1).lmo": (TALL, lambda x: norms.fanion(1).lmo(x)),
        "spectral_power": (TALL, lambda x: norms.spectral_power(x, 0.5)),
        "spectral_clip": (TALL, lambda x: norms.spectral_clip(x, 1.0)),
        "spectral_clip, low=": (TALL, lambda x: norms.spectral_clip(x, 1.0, low=0.5)),
        "normalise": (TALL, lambda x: norms.normalise(x, "rows")),
        "row_balanced": (TALL, norms.row_balanced),
        "per_block": (TALL, lambda x: norms.per_block(x, columns=3)),
        "per_block, schedule": (
            TALL,
            lambda x: norms.per_block(x, columns=3, polar=polar_express),
        ),
    }


def matrices(shape: tuple[int, int], count: int = 3) -> np.ndarray:
    """Return matrices with well-separated singular values, where every derivative exists."""
    rng = np.random.default_rng(0)
    values = np.array([2.0, 1.1, 0.4, 0.2])[: min(shape)]
    a = rng.standard_normal((count, *shape))
    u, _, vh = np.linalg.svd(a, full_matrices=False)
    return (u * (values * (1 + 0.1 * rng.random((count, 1))))[:, None, :]) @ vh


def flat(value: Any) -> np.ndarray:
    """Return all entries of a result as a vector."""
    parts = value if isinstance(value, (tuple, list)) else [value]
    return np.concatenate([np.ravel(np.asarray(to_numpy(part))) for part in parts])


def to_numpy(x: Any) -> Any:
    if hasattr(x, "full_tensor"):
        x = x.full_tensor()
    return x.detach().numpy() if hasattr(x, "detach") else x


def weights(size: int) -> np.ndarray:
    return np.cos(np.arange(1.0, size + 1))


def slope(f: Function, like: Callable[[np.ndarray], Any], x: np.ndarray, e: np.ndarray) -> float:
    """Return the fourth-order central difference of the weighted sum of a result."""

    def at(t: float) -> float:
        y = flat(f(like(x + t * e)))
        return float(weights(y.size) @ y)

    h = 1e-4
    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def close(got: Any, wanted: np.ndarray, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(flat(got), wanted, rtol=0, atol=atol)


def outcome(run: Callable[[], str | None]) -> str:
    """Return 'works', the message of an error of polarlib, or 'fails' with the outcome."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of torch and JAX
        try:
            return run() or WORKS
        except AssertionError as error:
            return f"fails: wrong value: {' '.join(str(error).split())[:160]}"
        except Exception as error:
            return refusal(error)


def refusal(error: BaseException | None) -> str:
    """Return the message of an error raised in polarlib, or quoted in one of torch's."""
    first = error
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = bool(frames) and PACKAGE in Path(frames[-1].filename).parents
        if ours and isinstance(error, (TypeError, ValueError, NotImplementedError)):
            return str(error).splitlines()[0]
        quoted = re.search(
            r"polarlib\.\w[^\n]* (?:looks at|reads entries of|is one operator) [^\n]*", str(error)
        )
        if quoted:
            return quoted[0].rstrip(")")
        error = error.__cause__ or error.__context__
    text = " ".join(str(first).split())
    return f"fails: {type(first).__name__}: {text[:160]}"


# -- torch -----------------------------------------------------------------------------------------


def torch_part() -> dict[str, dict[str, str]]:
    import torch

    like = torch.from_numpy
    weighted = lambda y: sum(  # noqa: E731
        (part.reshape(-1) * like(w)).sum() for part, w in in_pieces(y)
    )

    def vmap(f: Function, x: np.ndarray) -> None:
        close(torch.vmap(f)(like(x)), flat_of_stack(f, like, x))

    def backward(f: Function, x: np.ndarray) -> None:
        a = like(x[0]).requires_grad_()
        weighted(f(a)).backward()
        check_gradient(f, like, x, a.grad)

    def grad(f: Function, x: np.ndarray) -> None:
        check_gradient(f, like, x, torch.func.grad(lambda a: weighted(f(a)))(like(x[0])))

    def vmap_grad(f: Function, x: np.ndarray) -> None:
        got = torch.vmap(torch.func.grad(lambda a: weighted(f(a))))(like(x))
        for k in range(len(x)):
            check_gradient(f, like, x[k:], got[k])

    def jacobian(name: str) -> Callable[[Function, np.ndarray], Any]:
        def run(f: Function, x: np.ndarray) -> None:
            def stacked(a: Any) -> Any:
                y = f(a)
                parts = y if isinstance(y, (tuple, list)) else [y]
                return torch.cat([part.reshape(-1) for part in parts])

            j = getattr(torch.func, name)(stacked)(like(x[0]))
            check_gradient(f, like, x, torch.tensordot(like(weights(len(j))), j, 1))

        return run

    def compiled(full: bool) -> Callable[[Function, np.ndarray], Any]:
        def run(f: Function, x: np.ndarray) -> None:
            torch._dynamo.reset()
            g = torch.compile(f, backend="aot_eager", fullgraph=full)
            close(g(like(x[0])), flat(f(like(x[0]))))
            for more in (1, 2):  # other shapes: rows of another matrix below
                y = np.concatenate([x[0], x[1][: more + 1]])[: None if tall(x) else x.shape[1]]
                close(g(like(y)), flat(f(like(y))))
            a = like(x[0]).requires_grad_()
            weighted(g(a)).backward()
            check_gradient(f, like, x, a.grad)

        return run

    class Model(torch.nn.Module):
        def __init__(self, f: Function) -> None:
            super().__init__()
            self.f = f

        def forward(self, x: Any) -> Any:
            return self.f(x)

    def export(f: Function, x: np.ndarray) -> None:
        program = torch.export.export(Model(f), (like(x[0]),))
        close(program.module()(like(3 * x[1])), flat(f(like(3 * x[1]))))

    def jit_trace(f: Function, x: np.ndarray) -> None:
        traced = torch.jit.trace(f, like(x[0]), check_trace=False)
        close(traced(like(3 * x[1])), flat(f(like(3 * x[1]))))

    def same_shapes(y: Any, wanted: Any) -> None:
        y, wanted = (v if isinstance(v, (tuple, list)) else [v] for v in (y, wanted))
        assert [p.shape for p in y] == [p.shape for p in wanted]

    def meta(f: Function, x: np.ndarray) -> None:
        same_shapes(f(like(x[0]).to("meta")), f(like(x[0])))

    def fake(f: Function, x: np.ndarray) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        wanted = f(like(x[0]))
        with FakeTensorMode() as mode:
            same_shapes(f(mode.from_tensor(like(x[0]))), wanted)

    def inference(f: Function, x: np.ndarray) -> None:
        wanted = flat(f(like(x[0])))
        with torch.inference_mode():
            close(f(like(x[0])), wanted)

    def autocast(f: Function, x: np.ndarray) -> None:
        single = like(x[0].astype(np.float32))
        wanted = flat(f(single))
        with torch.autocast("cpu", torch.bfloat16):
            close(f(single), wanted, 1e-4)

    def empty(f: Function, x: np.ndarray) -> None:
        a = torch.zeros(0, *x.shape[1:], dtype=torch.float64, requires_grad=True)
        y = f(a)
        sum(p.sum() for p in (y if isinstance(y, (tuple, list)) else [y])).backward()
        assert a.grad.shape == a.shape

    return every(
        {
            "backward": backward,
            "vmap": vmap,
            "func.grad": grad,
            "vmap(grad)": vmap_grad,
            "jacfwd": jacobian("jacfwd"),
            "jacrev": jacobian("jacrev"),
            "compile": compiled(False),
            "compile(fullgraph=True)": compiled(True),
            "export": export,
            "jit.trace": jit_trace,
            "meta tensor": meta,
            "fake tensor": fake,
            "inference_mode": inference,
            "autocast": autocast,
        }
    )


def tall(x: np.ndarray) -> bool:
    return x.shape[1] > x.shape[2]


def in_pieces(y: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """Return the parts of a result, with the weights of their entries."""
    parts = y if isinstance(y, (tuple, list)) else [y]
    sizes = [int(np.prod(part.shape)) for part in parts]
    w = np.split(weights(sum(sizes)), np.cumsum(sizes)[:-1])
    return zip(parts, w, strict=True)


def flat_of_stack(f: Function, like: Callable[[np.ndarray], Any], x: np.ndarray) -> np.ndarray:
    """Return the entries of the results of each matrix, in the order of vmap."""
    results = [f(like(each)) for each in x]
    if isinstance(results[0], (tuple, list)):
        return np.concatenate([flat([r[k] for r in results]) for k in range(len(results[0]))])
    return flat(results)


def check_gradient(
    f: Function, like: Callable[[np.ndarray], Any], x: np.ndarray, gradient: Any
) -> None:
    """Compare with central differences along three directions."""
    rng = np.random.default_rng(1)
    gradient = np.asarray(to_numpy(gradient))
    for _ in range(3):
        e = rng.standard_normal(x[0].shape)
        np.testing.assert_allclose(
            np.sum(gradient * e), slope(f, like, x[0], e), rtol=1e-5, atol=1e-6
        )


def every(transformations: dict[str, Callable[[Function, np.ndarray], Any]]) -> Any:
    table: dict[str, dict[str, str]] = {}
    for name, (shape, f) in shapes_and_functions().items():
        table[name] = {}
        for label, run in transformations.items():
            start = time.process_time()
            found = outcome(lambda f=f, run=run, shape=shape: run(f, matrices(shape)))
            table[name][label] = found
            sys.stderr.write(f"{time.process_time() - start:6.1f} s  {name} | {label} | {found}\n")
    return table


# -- JAX -------------------------------------------------------------------------------------------


def jax_part() -> dict[str, dict[str, str]]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    like = jnp.asarray

    def weighted(f: Function) -> Function:
        return lambda a: sum(
            jnp.sum(jnp.ravel(part) * jnp.asarray(w)) for part, w in in_pieces(f(a))
        )

    def jit(f: Function, x: np.ndarray) -> None:
        close(jax.jit(f)(like(x[0])), flat(f(like(x[0]))))

    def vmap(f: Function, x: np.ndarray) -> None:
        close(jax.vmap(f)(like(x)), flat_of_stack(f, like, x))

    def jit_vmap(f: Function, x: np.ndarray) -> None:
        vmap(jax.jit(f), x)

    def grad(f: Function, x: np.ndarray) -> None:
        check_gradient(f, like, x, jax.grad(weighted(f))(like(x[0])))

    def jit_vmap_grad(f: Function, x: np.ndarray) -> None:
        got = jax.jit(jax.vmap(jax.grad(weighted(f))))(like(x))
        for k in range(len(x)):
            check_gradient(f, like, x[k:], got[k])

    def jvp(f: Function, x: np.ndarray) -> None:
        e = matrices(x.shape[1:], 1)[0][::-1].copy()
        got = jax.jit(lambda a, t: jax.jvp(weighted(f), (a,), (t,))[1])(like(x[0]), like(e))
        np.testing.assert_allclose(got, slope(f, like, x[0], e), rtol=1e-5, atol=1e-6)

    def checkpoint(f: Function, x: np.ndarray) -> None:
        got = jax.jit(jax.grad(jax.checkpoint(weighted(f))))(like(x[0]))
        check_gradient(f, like, x, got)

    def scan(f: Function, x: np.ndarray) -> None:
        _, got = jax.lax.scan(lambda carry, a: (carry, f(a)), None, like(x))
        close(got, flat_of_stack(f, like, x))

    def under(name: str, value: Any, of: Function) -> Callable[[Function, np.ndarray], Any]:
        def run(f: Function, x: np.ndarray) -> None:
            wanted = flat(f(like(x[0])))
            before = getattr(jax.config, name)
            jax.clear_caches()
            jax.config.update(name, value)
            try:
                close(of(f)(like(x[0])), wanted)
            finally:
                jax.config.update(name, before)

        return run

    def single(of: Function) -> Callable[[Function, np.ndarray], Any]:
        def run(f: Function, x: np.ndarray) -> None:
            wanted = flat(f(jnp.asarray(x[0], dtype=jnp.float32)))
            with jax.enable_x64(False):
                close(of(f)(jnp.asarray(x[0], dtype=jnp.float32)), wanted, 1e-3)

        return run

    plain: Function = lambda f: f  # noqa: E731
    return every(
        {
            "jit": jit,
            "vmap": vmap,
            "jit(vmap)": jit_vmap,
            "grad": grad,
            "jit(vmap(grad))": jit_vmap_grad,
            "jit(jvp)": jvp,
            "jit(grad(checkpoint))": checkpoint,
            "lax.scan": scan,
            "jax_debug_nans": under("jax_debug_nans", True, plain),
            "rank promotion 'raise'": under("jax_numpy_rank_promotion", "raise", plain),
            "strict promotion": under("jax_numpy_dtype_promotion", "strict", plain),
            "no 64-bit types": single(plain),
            "no 64-bit types, jit": single(jax.jit),
        }
    )


def mesh_part() -> dict[str, dict[str, str]]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    jax.config.update("jax_enable_x64", True)

    def sharded(kind: Any, spec: Any, of: Function, wide: bool) -> Any:
        def run(f: Function, x: np.ndarray) -> None:
            one = np.vstack([x[0], x[1]]) if tall(x) else matrices((2 * RANKS, 2 * RANKS), 1)[0]
            one = (one.T if wide else one).copy()
            with jax.set_mesh(jax.make_mesh((RANKS,), ("d",), axis_types=(kind,))) as _:
                mesh = jax.sharding.get_mesh()
                place = NamedSharding(mesh, PartitionSpec(*spec))
                y = of(f)(jax.device_put(jnp.asarray(one), place))
            first = y[0] if isinstance(y, tuple) else y
            close(y, flat(f(one)), 1e-4)
            if first.shape == one.shape and not first.sharding.is_equivalent_to(place, 2):
                assert first.sharding.is_fully_replicated
                return GATHERED
            return WORKS

        return run

    plain: Function = lambda f: f  # noqa: E731
    table: dict[str, Any] = {}
    for label, kind in (("explicit mesh", AxisType.Explicit), ("automatic mesh", AxisType.Auto)):
        table[f"{label}, rows"] = sharded(kind, ("d", None), plain, False)
        table[f"{label}, rows, jit"] = sharded(kind, ("d", None), jax.jit, False)
        table[f"{label}, columns of wide"] = sharded(kind, (None, "d"), plain, True)
        table[f"{label}, replicated"] = sharded(kind, (None, None), plain, False)
    return every(table)


# -- DTensor ---------------------------------------------------------------------------------------


def dtensor_part() -> dict[str, dict[str, str]]:
    import tempfile

    import torch.multiprocessing as processes

    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_rank, args=(folder,), nprocs=RANKS)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert all(rank == ranks[0] for rank in ranks), "ranks differ"
    return ranks[0]


def _rank(rank: int, folder: str) -> None:
    import datetime

    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    mesh = init_device_mesh("cpu", (RANKS,))

    def layout(place: Any, rows: int, wide: bool, gradient: bool = False) -> Any:
        def run(f: Function, x: np.ndarray) -> None:
            one = np.vstack(list(x))[:rows] if tall(x) else matrices((2 * RANKS, 2 * RANKS), 1)[0]
            one = (one.T if wide else one).copy()
            a = distribute_tensor(torch.from_numpy(one), mesh, [place])
            if gradient:
                a = a.detach().requires_grad_()
            y = f(a)
            first = y[0] if isinstance(y, tuple) else y
            if gradient:
                w = torch.from_numpy(weights(one.size).reshape(one.shape))
                (first * distribute_tensor(w, mesh, [place])).sum().backward()
                assert a.grad.placements == a.placements, f"{a.grad.placements}"
                f0 = lambda v: f(v)[0] if isinstance(f(v), tuple) else f(v)  # noqa: E731
                check_gradient(f0, torch.from_numpy, one[None], a.grad)
                return
            close(y, flat(f(one)), 1e-6)
            if tuple(first.shape) == one.shape:
                assert first.placements == a.placements, f"placements {first.placements}"

        return run

    table = every(
        {
            "rows": layout(Shard(0), 8, False),
            "rows, backward": layout(Shard(0), 8, False, True),
            "rows, uneven": layout(Shard(0), 7, False),
            "columns of wide": layout(Shard(1), 8, True),
            "rows of wide": layout(Shard(0), 8, True),
            "columns": layout(Shard(1), 8, False),
            "replicated": layout(Replicate(), 8, False),
        }
    )
    (Path(folder) / f"{rank}.json").write_text(json.dumps(table))
    dist.destroy_process_group()


# -- the page --------------------------------------------------------------------------------------

TITLES = {
    "torch": "torch",
    "jax": "JAX",
    "mesh": "JAX arrays sharded over two devices",
    "dtensor": "torch DTensors on two processes",
}


def measured(part: str) -> dict[str, dict[str, str]]:
    """Run one part in a separate process, since settings and devices belong to a process."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={RANKS}"}
    done = subprocess.run(
        [sys.executable, __file__, "--part", part],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"part {part}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def page(data: dict[str, dict[str, dict[str, str]]]) -> str:
    """Return the page of a table."""
    lines = [
        "# Transformations of torch and JAX",
        "",
        "This page lists every function of matrices under every transformation. It is made by",
        "`python docs/make_transformations.py` and checked by",
        "`tests/arrays/test_transformations.py`. [Arrays](../guide/arrays.md) has the summary.",
        "",
        "- ✓: the value, or the derivative, is correct. Values are compared with the plain call,",
        "  derivatives with central differences.",
        "- (✓): the result is correct, and every device holds all of it.",
        "- A number: the call raises the error with that number, at the end of the page.",
        "",
    ]
    messages: list[str] = []
    for part in PARTS:
        if part not in data:
            continue
        names = list(next(iter(data[part].values())))
        lines += [f"## {TITLES[part]}", "", "| | " + " | ".join(f"{n}" for n in names) + " |"]
        lines.append("| --- |" + " :---: |" * len(names))
        for function, row in data[part].items():
            cells = []
            for name in names:
                if row[name] in (WORKS, GATHERED):
                    cells.append("✓" if row[name] == WORKS else "(✓)")
                    continue
                if row[name] not in messages:
                    messages.append(row[name])
                cells.append(str(messages.index(row[name]) + 1))
            lines.append(f"| `{function}` | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Errors", ""]
    lines += [f"{k}. {message}" for k, message in enumerate(messages, 1)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the data and the page, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="measure one part and print it as JSON")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS, help="parts to renew")
    parser.add_argument("--check", action="store_true", help="compare with the data; write nothing")
    parser.add_argument("--page", action="store_true", help="call nothing; make the page")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(globals()[f"{options.part}_part"]()))  # noqa: T201
        return
    data = json.loads(DATA.read_text("utf-8")) if DATA.exists() else {}
    for part in () if options.page else options.only:
        outcomes = measured(part)
        if options.check and outcomes != data[part]:
            raise SystemExit(f"{part} differs: python docs/make_transformations.py")
        data[part] = outcomes
    if not options.check:
        DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
        PAGE.write_text(page(data), "utf-8")


if __name__ == "__main__":
    main()
