"""Public functions of torch tensors on devices that are not there, against those on the CPU.

    python -m tests.device.values [--only PATTERN] [--all] [--json]

"cuda": emulated tensors, whose results must be those of the CPU, up to rounding, and lie on the
device. "meta", "fake": tensors without entries, whose results have the right shape, dtype and
device.
Anywhere, one sentence of polarlib's is as good. What is printed are the calls that fail.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from . import public
from .emulated import Device, emulated

KINDS = ("cuda", "meta", "fake")
# Differences allowed, relative to the largest entry: steps of a schedule magnify roundings.
CLOSE = {"float64": 1e-10, "float32": 2e-4, "complex64": 2e-4, "bfloat16": 6e-2}
# Attributes of results that are estimates of rounding errors, counts, or of the path taken.
LOOSE = (
    "orthogonality",
    "backward_error",
    "iterations",
    "matmuls",
    "trace",
    "reason",
    "method",
    "condition_bounds",
)


# Of rank-deficient and wide matrices (few points), what is determined of the result.
DETERMINED: dict[str, Callable[[Any], Any]] = {
    "polarlib.align": lambda a: (a.scale, a.rmsd),
    "polarlib.svd_polar": lambda t: (t[1], (t[0] * t[1][..., None, :]) @ t[2]),
}


class Refused(Exception):
    """A sentence of polarlib's."""


class Raw(Exception):
    """Any other exception."""


def called(f: Callable[[], Any]) -> Any:
    """The result, or `Refused` or `Raw`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return f()
        except Exception as error:
            frames = []
            trace = error.__traceback__
            while trace is not None:
                frames.append(trace.tb_frame.f_code.co_filename)
                trace = trace.tb_next
            ours = f"{os.sep}polarlib{os.sep}" in frames[-1]
            kinds = (TypeError, ValueError, NotImplementedError, UserWarning)
            text = str(error)
            if ours and isinstance(error, kinds) and "\n" not in text:
                return Refused(text)
            place = next((f for f in reversed(frames) if f"{os.sep}polarlib{os.sep}" in f), "?")
            first = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
            return Raw(f"{first[:140]} [{os.path.basename(place)}]")


def parts(value: Any) -> Iterator[Any]:
    """Tensors and numbers of a result, in order."""
    if isinstance(value, torch.Tensor | float | int | complex | np.number):
        yield value
    elif isinstance(value, list | tuple) and not dataclasses.is_dataclass(value):
        for each in value:
            yield from parts(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            if each.name not in LOOSE:
                yield from parts(getattr(value, each.name))


def tensors(value: Any) -> list[torch.Tensor]:
    """Tensors of a result."""
    return [x for x in parts(value) if isinstance(x, torch.Tensor)]


# -- true values ---------------------------------------------------------------------------------


def compare_values(device: Device, name: str, given: public.Matrices, factor: float = 1.0) -> str:
    """What is wrong with a call on an emulated device, its results times a factor, or ""."""
    dtype = getattr(torch, given.dtype)

    def on_cpu(a: np.ndarray) -> torch.Tensor:
        real = dtype.is_complex or not np.iscomplexobj(a)
        return torch.from_numpy(np.ascontiguousarray(a if real else a.real)).to(dtype)

    with device.paused():
        expected = called(lambda: given.call(name, on_cpu))
        inputs = [on_cpu(given.matrix())]
    found = called(lambda: given.call(name, lambda a: device.tensor(on_cpu(a))))
    few = given.content in ("rank-deficient", "zero") or given.shape == "wide"
    if few and name in DETERMINED:
        expected, found = (
            x if isinstance(x, Refused | Raw) else DETERMINED[name](x) for x in (expected, found)
        )
    if isinstance(found, Raw):
        alike = isinstance(expected, Raw) and str(expected) == str(found)
        return f"{found}{', on the CPU as well' if alike else ''}"
    if isinstance(found, Refused):
        return "" if isinstance(expected, Refused) else f"refused on the device alone: {found}"
    if any(x.device.type != "cuda" for x in tensors(found) if x.ndim):
        return "the result is not on the device"
    values = [device.values(x) if isinstance(x, torch.Tensor) else x for x in parts(found)]
    with device.paused():
        values = [x * factor if isinstance(x, torch.Tensor) else x for x in values]
        if isinstance(expected, Refused | Raw):
            # On a device nothing asks for NaN, where the host raises.
            bad = all(not _finite(x) for x in values if isinstance(x, torch.Tensor))
            return "" if bad and given.content == "NaN" else f"on the CPU alone: {expected}"
        reference = list(parts(expected))
        if len(values) != len(reference):
            return f"{len(values)} parts, {len(reference)} on the CPU"
        worst = max(map(_distance, values, reference), default=0.0)
        if worst <= CLOSE[given.dtype]:
            return ""
        if given.content in ("rank-deficient", "zero") and _is_polar(values, inputs[0], given):
            return ""
    return f"differs by {worst:.1e} from the CPU"


def _finite(x: torch.Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _distance(x: Any, y: Any) -> float:
    """Largest difference of two parts, relative to the second; infinity where only one is NaN."""
    x, y = (torch.as_tensor(v).to(torch.complex128) for v in (x, y))
    if x.shape != y.shape:
        return float("inf")
    if not torch.equal(torch.isfinite(x), torch.isfinite(y)):
        return float("inf")
    x, y = (torch.nan_to_num(v, 0, 0, 0) for v in (x, y))
    if not y.numel():
        return 0.0
    return float((x - y).abs().max()) / max(1.0, float(y.abs().max()))


def _is_polar(values: list[Any], a: torch.Tensor, given: public.Matrices) -> bool:
    """Whether the first tensors are factors of A, or one with orthonormal rows or columns.

    Where singular values are zero the unitary factor is not unique.
    """
    found = [x.to(torch.complex128) for x in values if isinstance(x, torch.Tensor) and x.ndim > 1]
    if not found or found[0].shape != a.shape or not all(map(_finite, found)):
        return False
    u = found[0] if found[0].shape[-2] >= found[0].shape[-1] else found[0].mH
    eye = torch.eye(u.shape[-1], dtype=u.dtype)
    allowed = CLOSE[given.dtype]
    if float((u.mH @ u - eye).abs().max()) > allowed:
        return False
    if len(found) == 1:
        # The part of it that A determines: U V^H of the other singular triplets.
        left, s, right = torch.linalg.svd(a.to(torch.complex128), full_matrices=False)
        kept = (s > 1e-2).to(u.dtype)
        part = (left * kept[..., None, :]) @ right
        projected = left @ ((left.mH @ found[0] @ right.mH) * kept[..., None, :]) @ right
        return float((part - projected).abs().max()) <= 10 * allowed
    h = found[1]
    return h.shape[-2] == u.shape[-1] and float((found[0] @ h - a).abs().max()) <= 10 * allowed


# -- no values -----------------------------------------------------------------------------------


def compare_shapes(kind: str, name: str, given: public.Matrices) -> str:
    """What is wrong with a call on tensors without entries, or ""."""
    dtype = getattr(torch, given.dtype)
    where = "meta" if kind == "meta" else "cuda"
    expected = called(lambda: given.call(name, lambda a: torch.from_numpy(a.copy()).to(dtype)))
    if isinstance(expected, Refused | Raw):
        return ""  # as compare_values says
    with FakeTensorMode() if kind == "fake" else contextlib.nullcontext():

        def empty(a: np.ndarray) -> torch.Tensor:
            return torch.empty(a.shape, dtype=dtype, device=where)

        found = called(lambda: given.call(name, empty))
    if isinstance(found, Refused):
        return ""
    if isinstance(found, Raw):
        return str(found)
    pairs = list(zip(tensors(found), tensors(expected), strict=False))
    if len(pairs) != len(tensors(expected)):
        return f"{len(pairs)} tensors, {len(tensors(expected))} on the CPU"
    for x, y in pairs:
        if (x.shape, x.dtype) != (y.shape, y.dtype) or x.device.type != where:
            got = f"{tuple(x.shape)} {x.dtype} {x.device.type}"
            return f"{got}, expected {tuple(y.shape)} {y.dtype} {where}"
    return ""


# -- the command ---------------------------------------------------------------------------------


def failures(kind: str, name: str, every: bool, factor: float = 1.0) -> dict[str, str]:
    """Calls of a function that fail, by their matrices."""
    found = {}
    for given in public.matrices(name, every or kind != "cuda"):
        if kind == "cuda":
            with emulated() as device:
                why = compare_values(device, name, given, factor)
        elif given.content == "regular":
            why = compare_shapes(kind, name, given)
        else:
            continue
        if why:
            found[given.name] = why
    return found


def main() -> None:
    """Print the calls that fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="functions whose name has this pattern")
    parser.add_argument("--kinds", choices=KINDS, nargs="*", default=KINDS)
    parser.add_argument("--all", action="store_true", help="every combination, not some")
    parser.add_argument("--spoil", action="store_true", help="make every value wrong by half of it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in public.functions() if re.search(options.only, name)]
    factor = 1.5 if options.spoil else 1.0
    result: dict[str, dict[str, dict[str, str]]] = {}
    for kind in options.kinds:
        result[kind] = {}
        for name in names:
            result[kind][name] = failures(kind, name, options.all, factor)
            for matrices, why in result[kind][name].items():
                if not options.json:
                    print(f"{kind}: {name}, {matrices}: {why}", flush=True)  # noqa: T201
    if options.json:
        print(json.dumps(result))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
