"""Host time of a call of orthogonalize() on a device, relative to torch.optim.Muon's five steps.

    python benchmarks/host_time.py
    python benchmarks/host_time.py --page

The second line makes the sentence of docs/gpu.md from docs/data/host_time.json and measures
nothing. If a device is faster than its host, the host time limits the call, whatever the products
take. Tensors without entries (torch's "meta") take the path of device tensors, and no operator
computes: the time is that of choosing and queueing operators. "Python" is polarlib's own part of
it: the same call where each operator is a function without effect. Interleaved runs, medians.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import typer
from common import load, replace_part, store, where
from torch.optim import _muon

import polarlib
from polarlib.arrays import torch_ops
from polarlib.arrays.normaliser import Normaliser
from polarlib.timing import interleaved

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "data" / "host_time.json", ROOT / "docs" / "gpu.md"
MUON = "torch.optim.Muon"
JORDAN = (3.4445, -4.775, 2.0315)
SECONDS = 4.0


def contenders(x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return the calls on one 16-bit matrix."""
    return {
        MUON: lambda: _muon._zeropower_via_newtonschulz(x, JORDAN, 5, 1e-7),
        "auto": lambda: polarlib.orthogonalize(x),
        "jordan": lambda: polarlib.orthogonalize(x, schedule="jordan"),
    }


@contextlib.contextmanager
def nothing_computed() -> Iterator[None]:
    """Replace the operators of a call by functions without effect."""
    kernels = Normaliser(lambda x, *_: x, lambda y, g, *_: (y, g))
    idle = functools.partial(lambda *_, out=None, **__: out if out is not None else _[0])
    with (
        mock.patch.object(torch, "mm", idle),
        mock.patch.object(torch, "addmm", idle),
        mock.patch.object(torch_ops, "normaliser", return_value=kernels),
    ):
        yield


def median(times: list[float]) -> float:
    """Return the median in microseconds."""
    return round(1e6 * statistics.median(times), 1)


def main(page: bool = typer.Option(False, help="make the sentence from the data")) -> None:
    """Measure, store, and write the sentence."""
    if page:
        replace_part(PAGE, "host time", sentence(load(DATA)))
        return
    x = torch.zeros((1024, 1024), dtype=torch.bfloat16, device="meta")
    with torch.no_grad():
        calls = contenders(x)
        found = {name: median(t) for name, t in interleaved(calls, SECONDS).items()}
        with nothing_computed():
            own = {n: median(t) for n, t in interleaved(calls, 1.0).items() if n != MUON}
    figures = {"machine": where(), "microseconds": found, "Python": own}
    store(DATA, figures)
    replace_part(PAGE, "host time", sentence(figures))
    typer.echo(sentence(figures))


def sentence(figures: dict[str, Any]) -> str:
    """Return the sentence of the results."""
    times, own = figures["microseconds"], figures["Python"]
    ratios = " and ".join(
        f"{times[name] / times[MUON]:.2f} times ({name})" for name in ("auto", "jordan")
    )
    python = max(own.values())
    return (
        f"For a 1024 × 1024 bfloat16 tensor, the host time of a call is {ratios} that of the five "
        f"steps of `torch.optim.Muon`. Both ran interleaved on meta tensors; {python:.0f} µs are "
        f"polarlib's own Python (`python benchmarks/host_time.py`; {figures['machine']})."
    )


if __name__ == "__main__":
    typer.run(main)
