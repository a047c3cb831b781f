"""Which operators torch is given for tensors on a CUDA device, emulated on the CPU.

    python -m tests.device.on_torch [--only PATTERN] [-v] [--json]

Views and empty tensors are not among the operators, and "waits" are reads of the device. Values are
true, so that every branch is the one that a device would take.
"""

from __future__ import annotations

import torch

from . import counting
from .cases import CALLS, LARGE, SHAPES, Case
from .emulated import Counts, emulated

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def muon(x: torch.Tensor) -> torch.Tensor:
    """The five steps of torch.optim.Muon, to compare with."""
    from torch.optim import _muon

    return _muon._zeropower_via_newtonschulz(x, COEFFICIENTS, 5, 1e-7)


CALLS["torch.optim.Muon"] = muon
PEERS = tuple(Case("torch.optim.Muon", shape, "bfloat16") for shape in (LARGE, *SHAPES[1:3]))


def count(case: Case, verbose: bool = False) -> counting.Row:
    """Counts of the second call of one case."""
    torch.set_num_threads(1)
    a = torch.from_numpy(case.matrices()).to(getattr(torch, case.dtype))
    with emulated() as device:
        x = device.tensor(a)
        counting.outcome(lambda: case.function(x))
        device.counts = counts = Counts()
        came = counting.outcome(lambda: case.function(x))
    if verbose:
        counting.shown(
            counts.operators, counts.libraries, counts.copies, counts.transfers, counts.reads
        )
    return counts.summary() | {"outcome": came}


if __name__ == "__main__":
    counting.command("torch", count, PEERS)
