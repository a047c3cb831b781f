r"""What is computed with the polar factor, compared with other libraries: results and times.

    python benchmarks/uses.py --threads 1 --json docs/data/uses.json \
        --markdown docs/evidence/uses.md

Every contender gets the same data in the same process, those that are installed: SciPy, roma
(torch), theochem's procrustes, trimesh, pymanopt, geoopt. Each is timed in turn with polarlib's
function in three situations: alone, in alternation, after a NumPy product. A ratio is the time of
the other library over that of polarlib, the median over single rounds. The difference is the
largest one between the results, in units of the roundoff of the format.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import scipy.linalg
import typer
from common import load, replace_part, restart_with, run_name, run_of, runs, store, table
from rich.console import Console
from scipy.spatial.transform import Rotation

import polarlib
from polarlib.timing import BURST, SITUATIONS, interleaved, ratios

COMMAND = (
    "python benchmarks/uses.py --threads 1 --json docs/data/uses.json "
    "--markdown docs/evidence/uses.md"
)
# Rounds at least, and seconds of a situation. A loop over a stack of the others' functions may
# take seconds.
ROUNDS, SECONDS = 5, 0.5
Function = Callable[[], Any]
Flat = Callable[[Any], np.ndarray]


class Contender(NamedTuple):
    """A function without arguments, and how its result is compared."""

    call: Function
    result: Flat


def whole(result: Any) -> np.ndarray:
    return np.asarray(result)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# -- clouds of points --------------------------------------------------------------------------


def clouds(count: int, points: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clouds, moved ones with noise, and weights."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((count, points, 3))
    turns = polarlib.nearest_rotation(rng.standard_normal((count, 3, 3)))
    b = a @ turns + rng.standard_normal((count, 1, 3))
    b += 0.05 * rng.standard_normal(b.shape)
    w = rng.uniform(0.5, 1.5, (count, points))
    return a.astype(dtype), b.astype(dtype), w.astype(dtype)


def aligned(count: int, points: int, dtype: str) -> dict[str, Contender]:
    """Weighted rigid registration: rotations and translations."""
    a, b, w = clouds(count, points, dtype)

    def pose(result: Any) -> np.ndarray:
        return np.concatenate([result.rotation, result.translation[..., None, :]], axis=-2)

    found = {"polarlib.align": Contender(lambda: polarlib.align(a, b, weights=w), pose)}

    def scipys() -> np.ndarray:
        poses = np.empty((count, 4, 3))
        for k in range(count):
            size = w[k].sum()
            x, y = w[k] @ a[k] / size, w[k] @ b[k] / size
            turn, _ = Rotation.align_vectors(b[k] - y, a[k] - x, weights=w[k])
            poses[k, :3] = turn.as_matrix().T
            poses[k, 3] = y - x @ poses[k, :3]
        return poses

    found["SciPy, Rotation.align_vectors"] = Contender(scipys, whole)
    if installed("roma"):
        import roma
        import torch

        x, y, v = map(torch.from_numpy, (a, b, w))

        def romas(result: Any) -> np.ndarray:
            turn, move = (part.numpy() for part in result)
            return np.concatenate([np.swapaxes(turn, -1, -2), move[..., None, :]], axis=-2)

        found["roma, rigid_points_registration"] = Contender(
            lambda: roma.rigid_points_registration(x, y, weights=v), romas
        )
        found["polarlib.align, torch"] = Contender(
            lambda: polarlib.align(x, y, weights=v),
            lambda r: np.concatenate(
                [r.rotation.numpy(), r.translation.numpy()[..., None, :]], axis=-2
            ),
        )
    return found


def rotated(count: int, points: int, dtype: str) -> dict[str, Contender]:
    """Rotations of centred clouds without weights."""
    a, b, _ = clouds(count, points, dtype)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    found = {
        "polarlib.procrustes": Contender(
            lambda: polarlib.procrustes(a, b, rotation=True),
            whole,
        )
    }
    if installed("procrustes"):
        import procrustes

        found["theochem, rotational"] = Contender(
            lambda: [procrustes.rotational(x, y).t for x, y in zip(a, b, strict=True)], whole
        )
    if installed("trimesh"):
        from trimesh.registration import procrustes as theirs

        # With weights it takes weighted means, but leaves them out of the covariance.
        rigid = {"reflection": False, "scale": False, "return_cost": False}
        found["trimesh, procrustes"] = Contender(
            lambda: [theirs(x, y, **rigid)[:3, :3].T for x, y in zip(a, b, strict=True)], whole
        )
    return found


# -- matrices ------------------------------------------------------------------------------------


def nearest(count: int, n: int, dtype: str, *, rotation: bool) -> dict[str, Contender]:
    """Nearest rotations and orthogonal matrices of a stack, in torch."""
    a = np.random.default_rng(1).standard_normal((count, n, n)).astype(dtype)
    if not installed("roma"):
        return {}
    import roma
    import torch

    x = torch.from_numpy(a)
    ours = polarlib.nearest_rotation if rotation else polarlib.nearest_orthogonal
    theirs = roma.special_procrustes if rotation else roma.procrustes
    return {
        f"polarlib.{ours.__name__}, torch": Contender(lambda: ours(x), whole),
        f"roma, {theirs.__name__}": Contender(lambda: theirs(x), whole),
    }


def bases(count: int, m: int, n: int, dtype: str) -> dict[str, Contender]:
    """Orthogonal Procrustes problems."""
    a, b = np.random.default_rng(2).standard_normal((2, count, m, n)).astype(dtype)
    pairs = list(zip(a, b, strict=True))
    found = {
        "polarlib.procrustes": Contender(lambda: polarlib.procrustes(a, b), whole),
        "SciPy, orthogonal_procrustes": Contender(
            lambda: [scipy.linalg.orthogonal_procrustes(x, y)[0] for x, y in pairs], whole
        ),
    }
    if installed("procrustes"):
        import procrustes

        found["theochem, orthogonal"] = Contender(
            lambda: [procrustes.orthogonal(x, y).t for x, y in pairs], whole
        )
    return found


def points_of_stiefel(count: int, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and tangent vectors of length 1/2."""
    rng = np.random.default_rng(3)
    x = np.linalg.qr(rng.standard_normal((count, m, n)))[0]
    v = polarlib.manifold.tangent(x, rng.standard_normal(x.shape))
    return x, 0.5 * v / np.linalg.norm(v, axis=(-2, -1), keepdims=True)


def retracted(count: int, m: int, n: int, dtype: str) -> dict[str, Contender]:
    """Polar retractions of Stiefel manifolds."""
    x, v = (each.astype(dtype) for each in points_of_stiefel(count, m, n))
    x, v = (each[0] if count == 1 else each for each in (x, v))
    found = {"polarlib.manifold.retract": Contender(lambda: polarlib.manifold.retract(x, v), whole)}
    if installed("pymanopt"):
        from pymanopt.manifolds import Stiefel

        theirs = Stiefel(m, n, k=count, retraction="polar")
        found["pymanopt, Stiefel"] = Contender(lambda: theirs.retraction(x, v), whole)
    if installed("geoopt"):
        import geoopt
        import torch

        y, manifold = torch.from_numpy(x + v), geoopt.EuclideanStiefel()
        # Its retraction is by QR; its projection is the polar factor.
        found["geoopt, Stiefel.projx"] = Contender(lambda: manifold.projx(y), whole)
    return found


def cases() -> Iterator[tuple[str, str, Callable[[], dict[str, Contender]]]]:
    """Names, formats, and contenders, ours first."""
    for dtype in ("float64", "float32"):
        yield "10,000 clouds of 100 points", dtype, lambda d=dtype: aligned(10_000, 100, d)
    yield "100 clouds of 1,000 points", "float64", lambda: aligned(100, 1000, "float64")
    yield "a cloud of 100 points", "float64", lambda: aligned(1, 100, "float64")
    yield "1,000 centred clouds of 100 points", "float64", lambda: rotated(1000, 100, "float64")
    for dtype in ("float64", "float32"):
        make = lambda d=dtype: nearest(10_000, 3, d, rotation=True)  # noqa: E731
        yield "nearest rotations, 10,000 of 3 x 3", dtype, make
    make = lambda: nearest(10_000, 3, "float64", rotation=False)  # noqa: E731
    yield "nearest orthogonal matrices, 10,000 of 3 x 3", "float64", make
    make = lambda: nearest(200, 32, "float64", rotation=True)  # noqa: E731
    yield "nearest rotations, 200 of 32 x 32", "float64", make
    yield "bases, 1,000 of 50 x 5", "float64", lambda: bases(1000, 50, 5, "float64")
    yield "bases, 1 of 2,000 x 300", "float64", lambda: bases(1, 2000, 300, "float64")
    yield "Stiefel, 1,000 of 20 x 4", "float64", lambda: retracted(1000, 20, 4, "float64")
    yield "Stiefel, 1 of 2,000 x 200", "float64", lambda: retracted(1, 2000, 200, "float64")


# -- measurements --------------------------------------------------------------------------------


def measured(found: dict[str, Contender], dtype: str, seconds: float) -> list[dict[str, Any]]:
    """Differences and ratios of every other contender to ours: the first one of its library."""
    ours, *others = found
    rows = []
    for other in others:
        if other.startswith("polarlib"):
            continue
        torch = other.startswith("roma") and "polarlib.align, torch" in found
        mine = "polarlib.align, torch" if torch else ours
        a, b = (found[name].result(found[name].call()) for name in (mine, other))
        row = {
            "ours": mine,
            "other": other,
            "difference": float(np.abs(a - b).max() / np.finfo(dtype).eps),
        }
        for situation in SITUATIONS:
            functions = {mine: found[mine].call, other: found[other].call}
            times = interleaved(functions, seconds, least=ROUNDS, situation=situation, burst=BURST)
            quotients = ratios(times, other, mine)
            low, middle, high = np.quantile(quotients, [0.25, 0.5, 0.75])
            row[situation] = {
                "seconds": statistics.median(times[mine]),
                "ratio": float(middle),
                "quartiles": [float(low), float(high)],
                "rounds": len(quotients),
            }
        rows.append(row)
    return rows


def summary(figures: dict[str, Any]) -> str:
    """One sentence on all runs, each comparison in alternation."""
    found = [
        (row["alternation"]["ratio"], f"{case}: {row['other']}", row["difference"])
        for run in runs(figures)
        for case, rows in run["cases"].items()
        for row in rows
    ]
    faster = sum(ratio > 1 for ratio, *_ in found)
    (low, slow, _), (high, fast, _) = min(found), max(found)
    return (
        f"In alternation polarlib is faster in {faster} of {len(found)} comparisons. Ratios range "
        f"from {low:.2g} ({slow}) to {high:.2g} ({fast}). Results differ by at most "
        f"{max(d for *_, d in found):.0f} u."
    )


def page(figures: dict[str, Any]) -> str:
    """The summary, and the tables of all runs."""
    parts = [summary(figures)]
    for run in runs(figures):
        lines = []
        for case, rows in run["cases"].items():
            for row in rows:
                timed = row["alternation"]
                lines.append(
                    [
                        case,
                        row["other"],
                        f"{row['difference']:.0f}",
                        f"{1e3 * timed['seconds']:.3g} ms",
                        *(f"{row[s]['ratio']:.3g}" for s in ("alternation", *SITUATIONS[::2])),
                        "{:.3g} to {:.3g}".format(*timed["quartiles"]),
                    ]
                )
        head = ("", "compared with", "difference, u", "polarlib", "in alternation")
        head = (*head, *SITUATIONS[::2], "quartiles")
        parts.append(f"{run_name(run)}: {run['machine']}.\n\n{table(head, lines)}")
    return f"`{COMMAND}`\n\n" + "\n\n".join(parts)


def main(
    json: Annotated[Path | None, typer.Option(help="file of figures, added to")] = None,
    markdown: Annotated[Path | None, typer.Option(help="page with the table")] = None,
    threads: Annotated[int | None, typer.Option(help="of BLAS and torch")] = None,
    only: Annotated[str, typer.Option(help="cases whose name contains this")] = "",
    seconds: Annotated[float, typer.Option(help="of each situation")] = SECONDS,
) -> None:
    """Compare with other libraries."""
    restart_with(threads)
    figures: dict[str, Any] = load(json, "runs") if json else {"runs": {}}
    run = run_of(figures, False)
    console = Console(stderr=True)
    for case, dtype, make in cases():
        if only not in case:
            continue
        name = f"{case}, {dtype}"
        run["cases"][name] = measured(make(), dtype, seconds)
        for row in run["cases"][name]:
            timed = ", ".join(f"{s} {row[s]['ratio']:.2f}" for s in SITUATIONS)
            console.print(f"{name} | {row['other']} | {row['difference']:.1f} u | {timed}")
        if json:
            store(json, figures)
    if markdown:
        replace_part(markdown, "uses", page(figures))


if __name__ == "__main__":
    typer.run(main)
