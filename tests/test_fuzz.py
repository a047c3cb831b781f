"""Wrong values in every argument of the public interface: what leaves is a sentence, and soon.

The table of the interface is made by introspection. A row gives what a call needs besides its
defaults; one or two arguments are then replaced by wrong values. What may leave is TypeError or
ValueError in one line that names the argument or the value, OSError where a path is an argument,
and what the docstring of the function names besides. Nothing else, nothing that takes longer than
ten seconds, and no death of the process (faulthandler then says where).
"""

from __future__ import annotations

import array
import contextlib
import decimal
import faulthandler
import fractions
import functools
import importlib
import inspect
import itertools
import os
import random
import re
import signal
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import polarlib
from polarlib import design, norms, plot
from polarlib.arrays import checks

MODULES = (
    "polarlib",
    "polarlib.design",
    "polarlib.norms",
    "polarlib.updates",
    "polarlib.manifold",
    "polarlib.plot",
    "polarlib.files",
    "polarlib.testing",
    "polarlib.derivatives",
    "polarlib.published",
    "polarlib.norms.topk",
    "polarlib.design.cost_tables",
)
# Values with names: their constructors take what they are given.
RECORDS = (
    polarlib.Alignment,
    polarlib.Certificate,
    polarlib.ConvergenceWarning,
    polarlib.GeneralizedProcrustes,
    polarlib.PolarResult,
    polarlib.ScheduleWarning,
    polarlib.Status,
    polarlib.Trace,
)
SPECIAL_METHODS = ("__call__", "__getitem__", "__rmul__")
FORMER = ("survives",)  # former names, which warn
SECONDS = 10
LONGEST = 500


# -- the public interface ---------------------------------------------------------------------

A = np.array([[3.0, 0.0, 1.0], [4.0, 5.0, 0.0], [1.0, 1.0, 2.0], [0.0, 1.0, 1.0]])
S = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])


@functools.cache
def _sample(name: str) -> Any:
    """Objects that methods belong to, and that arguments are."""
    jordan = polarlib.schedule("jordan", 2)
    return {
        "schedule": lambda: jordan,
        "rational": lambda: design.zolotarev(1, 0.1),
        "trace": lambda: polarlib.measure(A, jordan),
        "alignment": lambda: polarlib.align(A, A),
        "result": lambda: polarlib.polar(A),
        "spectrum": lambda: design.log_uniform(1e-3),
        "norm": norms.spectral,
        "convolution": lambda: norms.convolution(norms.spectral()),
        "modular": lambda: norms.modular([norms.spectral()]),
        "layer": lambda: norms.layer(norms.spectral()),
        "axes": lambda: plot.polynomial(jordan),
        "root": lambda: design.inverse_root(2, 0.5, [3]),
    }[name]()


FOLDER = tempfile.mkdtemp()


def _path(name: str) -> str:
    return os.path.join(FOLDER, name)


def _file(name: str) -> str:
    """A file of the kind that its suffix says."""
    path = _path(name)
    if name.endswith(".json"):
        _sample("schedule").to_json(path)
    elif name.endswith(".csv"):
        _sample("trace").to_csv(path)
    elif name.endswith(".npy"):
        np.save(path, A)
    return path


# Arguments of a call in addition to the defaults.
ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "polarlib.Schedule": lambda: {"steps": [(1.5, -0.5)], "lower": 0.5},
    "polarlib.Schedule.__call__": lambda: {"x": 0.5},
    "polarlib.Schedule.__getitem__": lambda: {"index": 0},
    "polarlib.Schedule.certify": dict,
    "polarlib.Schedule.compare": lambda: {"others": (_sample("schedule"),)},
    "polarlib.Schedule.derivative": lambda: {"x": 0.5},
    "polarlib.Schedule.divided": lambda: {"lower": 0.1, "upper": 1.0},
    "polarlib.Schedule.error": dict,
    "polarlib.Schedule.from_json": lambda: {"path": _file("read.json")},
    "polarlib.Schedule.image": dict,
    "polarlib.Schedule.quantize": lambda: {"format": "float32"},
    "polarlib.Schedule.is_safe_in": lambda: {"format": "bfloat16"},
    "polarlib.Schedule.to_code": lambda: {"kind": "python"},
    "polarlib.Schedule.to_dict": dict,
    "polarlib.Schedule.to_json": lambda: {"path": _path("write.json")},
    "polarlib.Schedule.truncate": lambda: {"k": 1},
    "polarlib.PolarResult.__getitem__": lambda: {"index": 0},
    "polarlib.PolarResult.to_dict": dict,
    "polarlib.Trace.from_csv": lambda: {"path": _file("trace.csv")},
    "polarlib.Trace.from_dict": lambda: {"d": _sample("trace").to_dict()},
    "polarlib.Trace.to_csv": lambda: {"path": _path("write.csv")},
    "polarlib.Trace.to_dict": dict,
    "polarlib.Alignment.__call__": lambda: {"points": A},
    "polarlib.align": lambda: {"points": A, "targets": A},
    "polarlib.communication": lambda: {"shape": (8, 4), "layout": "rows", "devices": 2},
    "polarlib.default_schedule": lambda: {"format": "bfloat16"},
    "polarlib.eigh_polar": lambda: {"h": S},
    "polarlib.generalized_procrustes": lambda: {"shapes": np.stack([A, A + 1, A[::-1]])},
    "polarlib.inverse_root": lambda: {"a": S, "p": 2},
    "polarlib.measure": lambda: {"a": A, "schedule_or_method": "jordan"},
    "polarlib.methods": dict,
    "polarlib.nearest_orthogonal": lambda: {"a": A},
    "polarlib.nearest_rotation": lambda: {"a": S},
    "polarlib.orthogonalize": lambda: {"g": A},
    "polarlib.orthogonalize_all": lambda: {"gradients": [A, A, S]},
    "polarlib.orthogonalize_jvp": lambda: {"g": A, "dg": A},
    "polarlib.orthogonalize_vjp": lambda: {"g": A, "q_bar": A},
    "polarlib.polar": lambda: {"a": A},
    "polarlib.polar_jvp": lambda: {"a": A, "da": A},
    "polarlib.polar_vjp": lambda: {"a": A, "u_bar": A},
    "polarlib.polar_tall": lambda: {"x": A},
    "polarlib.procrustes": lambda: {"a": A, "b": A},
    "polarlib.schedule": lambda: {"name": "jordan"},
    "polarlib.schedules": dict,
    "polarlib.signm": lambda: {"a": S},
    "polarlib.sqrtm": lambda: {"a": S},
    "polarlib.sqrtm_psd": lambda: {"a": S},
    "polarlib.svd_polar": lambda: {"a": A},
    "polarlib.top_singular": lambda: {"a": A, "k": 2},
    "polarlib.design.band": lambda: {"steps": 1, "epsilon": 0.3, "degree": 3},
    "polarlib.design.best": lambda: {"degree": 3, "lower": 0.1},
    "polarlib.design.best_degrees": lambda: {"lower": 0.1, "matmuls": 5},
    "polarlib.design.budget": lambda: {"lower": 0.1, "matmuls": 5},
    "polarlib.design.frontier": lambda: {"lower": 0.1, "matmuls": 5},
    "polarlib.design.clip": lambda: {"upper": 2.0, "degrees": [3]},
    "polarlib.design.costs": dict,
    "polarlib.design.fingerprint": lambda: {"step": design.minimax(5, 0.1).steps[0]},
    "polarlib.design.for_matrix": lambda: {"a": A, "steps": 1, "degree": 3, "starts": 1},
    "polarlib.design.for_precision": lambda: {"format": "bfloat16", "lower": 0.1, "steps": 1},
    "polarlib.design.for_slope": lambda: {"slope": 3.0, "degrees": [3, 5]},
    "polarlib.design.for_spectrum": lambda: {
        "density_or_singular_values": [1.0, 0.5, 0.2],
        "steps": 1,
        "degree": 3,
        "starts": 1,
    },
    "polarlib.design.sketched_spectrum": lambda: {"a": A},
    "polarlib.design.greedy": lambda: {"lower": 0.1, "degrees": [3, 5]},
    "polarlib.design.largest_complement": lambda: {"lower": 0.1, "degrees": [3]},
    "polarlib.design.least_error": lambda: {"lower": 0.1, "degrees": [3]},
    "polarlib.design.log_uniform": lambda: {"low": 0.1},
    "polarlib.design.marchenko_pastur": lambda: {"m": 30, "n": 10},
    "polarlib.design.mean_error": lambda: {
        "schedule": _sample("schedule"),
        "density_or_singular_values": [1.0, 0.5],
    },
    "polarlib.design.minimax": lambda: {"degree": 3, "lower": 0.1},
    "polarlib.design.noise_gain": lambda: {"step": (1.5, -0.5), "upper": 1.0},
    "polarlib.design.power": lambda: {"p": 0.5, "lower": 0.1, "degrees": [3]},
    "polarlib.design.power_law": lambda: {"alpha": 1.0, "low": 0.1},
    "polarlib.design.restarts": lambda: {"schedule": _sample("schedule"), "format": "bfloat16"},
    "polarlib.design.sensitivity": lambda: {"s": _sample("schedule")},
    "polarlib.design.smooth_sign": lambda: {"delta": 0.5, "degrees": [3]},
    "polarlib.design.spectrum": lambda: {"density_or_singular_values": [1.0, 0.5]},
    "polarlib.design.stationary": lambda: {"epsilon": 0.3, "degree": 3},
    "polarlib.design.steepest": lambda: {"error": 0.3, "degrees": [3, 5]},
    "polarlib.design.table": lambda: {"schedule": _sample("schedule")},
    "polarlib.design.tune": lambda: {
        "objective": "slope",
        "start": design.greedy(0.3, [3]),
        "starts": 1,
    },
    "polarlib.design.inverse_root": lambda: {"p": 2, "lower": 0.5, "degrees": [3]},
    "polarlib.design.zolotarev": lambda: {"r": 1, "lower": 0.1},
    "polarlib.norms.Module.norm": dict,
    "polarlib.norms.bond": dict,
    "polarlib.norms.compose": lambda: {"modules": (_sample("layer"),)},
    "polarlib.norms.convolution": lambda: {"norm": _sample("norm")},
    "polarlib.norms.duality_gap": lambda: {"n": _sample("norm"), "g": A, "t": A},
    "polarlib.norms.f_fanion": lambda: {"k": 2, "alpha": 0.5},
    "polarlib.norms.f_muon": lambda: {"alpha": 0.5},
    "polarlib.norms.f_neon": lambda: {"alpha": 0.5},
    "polarlib.norms.fanion": lambda: {"k": 2},
    "polarlib.norms.frobenius": dict,
    "polarlib.norms.induced": lambda: {"a": 1, "b": 2},
    "polarlib.norms.join": lambda: {"modules": (_sample("layer"),)},
    "polarlib.norms.kernel_to_matrix": lambda: {"w": np.ones((2, 3, 2, 2))},
    "polarlib.norms.ky_fan": lambda: {"k": 2},
    "polarlib.norms.ky_fan_dual": lambda: {"k": 2},
    "polarlib.norms.layer": lambda: {"norm": _sample("norm")},
    "polarlib.norms.lp": lambda: {"p": 3},
    "polarlib.norms.matrix_to_kernel": lambda: {"x": np.ones((2, 12)), "shape": (2, 3, 2, 2)},
    "polarlib.norms.minkowski_sum": lambda: {"terms": [(0.5, norms.spectral()), (1, norms.lp(1))]},
    "polarlib.norms.modular": lambda: {"norms": [_sample("norm")]},
    "polarlib.norms.mup": lambda: {"layer": "hidden"},
    "polarlib.norms.neon": dict,
    "polarlib.norms.normalise": lambda: {"g": A, "which": "rows"},
    "polarlib.norms.nuclear": dict,
    "polarlib.norms.row_balanced": lambda: {"g": A},
    "polarlib.norms.rms_to_rms": lambda: {"fan_out": 4, "fan_in": 3},
    "polarlib.norms.s_fanion": lambda: {"k": 2, "alpha": 0.5, "eta": 0.5},
    "polarlib.norms.s_muon": lambda: {"alpha": 0.5, "eta": 0.5},
    "polarlib.norms.schatten": lambda: {"p": 3},
    "polarlib.norms.spectral": dict,
    "polarlib.norms.spectral_radii": lambda: {"widths": [4, 8]},
    "polarlib.norms.update_scale": lambda: {"m": 4, "n": 3, "rule": "jordan"},
    "polarlib.norms.polargrad": lambda: {"g": A},
    "polarlib.norms.random_spectrum": lambda: {
        "g": A,
        "rng": np.random.default_rng(0),
    },
    "polarlib.norms.scrambled_spectrum": lambda: {"g": A},
    "polarlib.norms.spectral_clip": lambda: {"g": A, "high": 1.0},
    "polarlib.norms.spectral_power": lambda: {"g": A, "exponent": 0.5},
    "polarlib.manifold.inverse_retract": lambda: {"x": A, "y": A},
    "polarlib.manifold.retract": lambda: {"x": A, "v": A},
    "polarlib.manifold.tangent": lambda: {"x": A, "z": A},
    "polarlib.updates.debias": lambda: {"m": A, "k": 2, "beta": 0.9},
    "polarlib.updates.dion": lambda: {"m": A, "g": A, "q": np.eye(3)},
    "polarlib.updates.ema": lambda: {"m": A, "g": A, "beta": 0.9},
    "polarlib.updates.lion": lambda: {"m": A, "g": A, "beta1": 0.9, "beta2": 0.99},
    "polarlib.updates.nesterov": lambda: {"b": A, "g": A, "mu": 0.9},
    "polarlib.updates.polyak": lambda: {"b": A, "g": A, "mu": 0.9},
    "polarlib.updates.presgdw_step": lambda: {"x": A, "d": A, "h": S, "rate": 0.1},
    "polarlib.updates.scg_step": lambda: {"x": A, "d": A, "lmo": norms.spectral().lmo, "step": 0.1},
    "polarlib.updates.uscg_step": lambda: {
        "x": A,
        "d": A,
        "lmo": norms.spectral().lmo,
        "rate": 0.1,
    },
    "polarlib.plot.compare": lambda: {"traces": [_sample("trace")]},
    "polarlib.plot.convergence": lambda: {"t": _sample("trace")},
    "polarlib.plot.cost": lambda: {"traces": [_sample("trace")]},
    "polarlib.plot.error": lambda: {"schedules": [_sample("schedule")]},
    "polarlib.plot.matrix_products": lambda: {"schedules": [_sample("schedule")]},
    "polarlib.plot.polynomial": lambda: {"s": _sample("schedule")},
    "polarlib.plot.save": lambda: {"ax": _sample("axes"), "path": _path("write.svg")},
    "polarlib.plot.singular_values": lambda: {"t": _sample("trace")},
    "polarlib.plot.style": lambda: {"name": "column"},
    "polarlib.plot.unit_ball": lambda: {"norm": _sample("norm")},
    "polarlib.files.names": lambda: {"path": _file("read.npy")},
    "polarlib.files.read": lambda: {"path": _file("read.npy")},
    "polarlib.files.sample_matrices": dict,
    "polarlib.files.split": lambda: {"path": _file("read.npy")},
    "polarlib.files.sample_metadata": dict,
    "polarlib.files.write": lambda: {"path": _path("write.npy"), "array": A},
    "polarlib.files.write_all": lambda: {"arrays": {_path("several.npy"): A}},
    "polarlib.files.write_npys": lambda: {"arrays": {_path("several.npy"): A}},
    "polarlib.files.write_npy": lambda: {"path": _path("write.npy"), "array": A},
    "polarlib.testing.assert_polar": lambda: {"a": -np.eye(2), "u": -np.eye(2), "h": np.eye(2)},
    "polarlib.testing.assert_unitary_factor": lambda: {"a": np.eye(2), "u": np.eye(2)},
    "polarlib.testing.orthonormal": lambda: {"m": 3, "n": 2},
    "polarlib.testing.rotation": lambda: {"n": 3, "angle": 0.5},
    "polarlib.testing.spectrum": lambda: {"name": "linear", "k": 3},
    "polarlib.testing.with_singular_values": lambda: {"s": [1.0, 0.5]},
    "polarlib.testing.zoo": lambda: {"n": 3},
    "polarlib.published.target_of": lambda: {"name": "jordan"},
    "polarlib.published.conventions": lambda: {"name": "jordan"},
    "polarlib.published.listed": lambda: {"name": "jordan"},
    "polarlib.published.opened": lambda: {"name": "jordan"},
    "polarlib.norms.power_step": lambda: {"m": A, "q": np.eye(3)},
    "polarlib.norms.per_block": lambda: {"g": A, "rows": 2},
    "polarlib.norms.block_periodic": lambda: {"g": A, "k": 1, "period": 2},
    "polarlib.norms.range_lmo": lambda: {"g": A, "p": np.eye(4)},
    "polarlib.norms.topk.triplets": lambda: {"a": A, "k": 2},
    "polarlib.design.cost_tables.kernel_costs": lambda: {
        "library": "numpy",
        "format_name": "float64",
        "n": 100,
    },
    "polarlib.design.cost_tables.read_costs": lambda: {"path": _path("none.toml")},
    "polarlib.design.cost_tables.symmetric_cost": lambda: {
        "library": "torch",
        "format_name": "bfloat16",
        "n": 100,
    },
}
for _name in [
    "binomial",
    "cauchy",
    "frank",
    "graded",
    "growth",
    "hilbert",
    "jordan_block",
    "kahan",
    "wilkinson",
    "wilkinson_minus",
]:
    ROWS[f"polarlib.testing.{_name}"] = lambda: {"n": 3}
for _kind in ("norm", "convolution", "modular"):
    for _name in ("__call__", "dual_norm", "lmo", "sharp", "project"):
        _w = {"norm": A, "convolution": np.ones((2, 3, 1, 2)), "modular": [A]}[_kind]
        _argument = "x" if _name in ("__call__", "project") else "g"
        ROWS[f"polarlib.norms.{_kind}.{_name}"] = functools.partial(dict, **{_argument: _w})
    ROWS[f"polarlib.norms.{_kind}.dual"] = dict
    ROWS[f"polarlib.norms.{_kind}.__rmul__"] = lambda: {"s": 2.0}

# What methods belong to: for a class of several kinds, one of each.
SELVES = {
    "polarlib.Alignment": "alignment",
    "polarlib.Schedule": "schedule",
    "polarlib.PolarResult": "result",
    "polarlib.Trace": "trace",
    "polarlib.norms.Module": "layer",
    "polarlib.norms.norm": "norm",
    "polarlib.norms.convolution": "convolution",
    "polarlib.norms.modular": "modular",
}
# Exceptions in a function's docstring other than TypeError and ValueError.
ALSO: dict[str, tuple[type[BaseException], ...]] = {
    "polarlib.norms.norm.": (NotImplementedError,),
    "polarlib.norms.convolution.": (NotImplementedError,),
    "polarlib.norms.modular.": (NotImplementedError,),
    "polarlib.norms.duality_gap": (NotImplementedError,),
    "polarlib.plot.unit_ball": (NotImplementedError,),
    "polarlib.testing.assert_": (AssertionError,),
    "polarlib.PolarResult.__getitem__": (IndexError,),  # as a tuple, so that unpacking ends
    "polarlib.Schedule.__getitem__": (IndexError,),
}


@dataclass(frozen=True)
class Entry:
    """A function or method of the public interface."""

    name: str
    call: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]
    method: bool = False

    def run(self, values: dict[str, Any]) -> Any:
        """Call with arguments by name; results that are made on demand are made."""
        given, positional = dict(values), []
        for p in self.parameters:
            if p.kind is p.POSITIONAL_ONLY and p.name in given:
                positional.append(given.pop(p.name))
            elif p.kind is p.VAR_POSITIONAL:
                positional += given.pop(p.name, ())
            elif p.kind is p.VAR_KEYWORD:
                given |= given.pop(p.name, {})
        result = self.call(*positional, **given)
        if isinstance(result, types.GeneratorType):
            next(result, None)
        return result


def _members(name: str, cls: type) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    if not issubclass(cls, RECORDS) and not issubclass(cls, tuple) and cls is not norms.Norm:
        yield name, cls, False
    if issubclass(cls, BaseException) or cls is polarlib.Status:
        return
    kinds = [k for k in SELVES if SELVES[k] in ("norm", "convolution", "modular")]
    for own in kinds if cls is norms.Norm else [name]:
        for key in dir(cls):
            member = inspect.getattr_static(cls, key)
            inherited = hasattr(tuple, key) or key in ("add_note", "with_traceback")
            public = key not in FORMER and (not key.startswith("_") or key in SPECIAL_METHODS)
            if not public or (issubclass(cls, tuple) and (inherited or key.startswith("_"))):
                continue
            if isinstance(member, types.FunctionType | classmethod):
                yield f"{own}.{key}", getattr(_sample(SELVES[own]), key), True


@functools.cache
def interface() -> dict[str, Entry]:
    """Every public function, constructor and method, by its dotted name."""
    found: dict[str, Entry] = {}
    seen: set[int] = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for key in module.__all__:
            value = getattr(module, key)
            if not callable(value) or id(value) in seen:
                continue
            seen.add(id(value))
            name = f"{module_name}.{key}"
            rows = _members(name, value) if inspect.isclass(value) else [(name, value, False)]
            for row, call, method in rows:
                parameters = tuple(inspect.signature(call).parameters.values())
                found[row] = Entry(row, call, parameters, method)
    return found


# -- wrong values -----------------------------------------------------------------------------


class TheirsError(Exception):
    """What the caller's own functions raise: it passes through."""


class _NoRepr:
    def __repr__(self) -> str:
        raise TheirsError


class _LikeAnArray:
    """Comparisons that have no truth value, and no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TheirsError


class _Int(int):
    def __repr__(self) -> str:
        raise TheirsError


class _Text(str):
    def __repr__(self) -> str:
        raise TheirsError


class _Float(float):
    pass


def _raises(*_: Any, **__: Any) -> Any:
    raise TheirsError


def _itself() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def _deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    return nested


# Made for each call, since some can be used up.
WRONG: dict[str, Callable[[], Any]] = {
    **{
        repr(v)[:30]: lambda v=v: v
        for v in (
            *(None, True, False, 0, 1, 2, 3, -1, -3, 7, 10, 1001, 10**6 + 1, 10**9, 2**31, 2**63),
            *(-(2**63), 10**30, float("nan"), float("inf"), -float("inf"), -0.0, 5e-324, 1e-300),
            *(1e308, 0.5, 1.0, 1.5, 2.0, 3.0, 1e-17, 1 - 2**-53, 1j, complex("nan"), "", "x", "3"),
            *("0.5", "auto", "gram", "nan", "inf", "1e400", "a\nb", "\ud800", "\0", "\x1b[31m"),
            *(b"x", b"3", [], (), {}, set(), [1], [3, 5], [3.0], [0.5, 0.5], [[]], [[1.5, -0.5]]),
            *([None], ["a"], [[None]], [float("nan")], [0.0], [-1], [1j], [True], [b"x"], [{}]),
            *((1,), (1, 2), (2, 3), (1, 2, 3), (0.1, 2.0), (2.0, 0.1), (None, None), ("a", "b")),
            *({1: 2}, {"a": 1}, {3: 1.0, 5: 2.0, 9: 3.0}, {3: None}, frozenset({1}), range(3)),
            *(Ellipsis, NotImplemented, slice(1), "power(0.5)", "polar", "qdwh"),
        )
    },
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "10**5000": lambda: 10**5000,
    "Decimal": lambda: decimal.Decimal("0.5"),
    "Decimal nan": lambda: decimal.Decimal("sNaN"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "huge Fraction": lambda: fractions.Fraction(10**400, 3),
    "float32": lambda: np.float32(0.5),
    "float16 nan": lambda: np.float16("nan"),
    "longdouble": lambda: np.longdouble("1e400"),
    "int8": lambda: np.int8(3),
    "int64": lambda: np.int64(1),
    "uint8": lambda: np.uint8(2),
    "bool_": lambda: np.bool_(True),
    "complex64": lambda: np.complex64(1j),
    "datetime64": lambda: np.datetime64("2020-01-01"),
    "timedelta64": lambda: np.timedelta64(1, "s"),
    "str_": lambda: np.str_("auto"),
    "long text": lambda: "a" * 10_000,
    "a list of lists": lambda: [[1.0, 2.0], [3.0]],
    "a list of huge": lambda: [10**400, 10**400],
    "a huge step": lambda: [[10**400, 1.0]],
    "many steps": lambda: [(1.5, -0.5)] * 20_000,
    "many degrees": lambda: [3] * 10**6,
    "many names": lambda: ["a"] * 10**5,
    "many": lambda: range(10**9),
    "odd without end": lambda: itertools.count(3, 2),
    "repeat": lambda: itertools.repeat(3),
    "generator": lambda: (k for k in (3, 5)),
    "map": lambda: map(float, "12"),
    "itself": _itself,
    "deep": _deep,
    "object": object,
    "no repr": _NoRepr,
    "a list of no repr": lambda: [_NoRepr()],
    "like an array": _LikeAnArray,
    "int without repr": lambda: _Int(-3),
    "text without repr": lambda: _Text("wrong"),
    "subclass of str": lambda: _Text("auto"),
    "subclass of int": lambda: _Int(1),
    "subclass of float": lambda: _Float(0.5),
    "lambda": lambda: lambda *_: 1.0,
    "lambda of None": lambda: lambda *_: None,
    "lambda of text": lambda: lambda *_: "x",
    "lambda of an array": lambda: lambda *_: np.ones((2, 2)),
    "lambda of nan": lambda: lambda *_: float("nan"),
    "identity": lambda: lambda x, *_: x,
    "raises": lambda: _raises,
    "module": lambda: np,
    "path": lambda: Path(FOLDER) / "absent" / "x.npy",
    "folder": lambda: Path(FOLDER),
    "array 0-d": lambda: np.array(3),
    "array 0-d float": lambda: np.array(0.5),
    "array 0-d text": lambda: np.array("x"),
    "array 0-d object": lambda: np.array(None),
    "array empty": lambda: np.zeros(0),
    "array of 3": lambda: np.array([3, 5, 5]),
    "array of 1": lambda: np.array([0.5]),
    "array 2 x 2": lambda: np.eye(2),
    "array 3 x 3": lambda: S.copy(),
    "array 4 x 3": lambda: A.copy(),
    "array of the shape in float32": lambda: A.astype("f4"),
    "array of nan": lambda: np.full((4, 3), np.nan),
    "array of inf": lambda: np.full((3, 3), np.inf),
    "array of complex": lambda: A + 1j,
    "array of int": lambda: np.ones((4, 3), int),
    "array of bool": lambda: np.ones((4, 3), bool),
    "array of text": lambda: np.full((4, 3), "x"),
    "array of object": lambda: np.full((4, 3), None),
    "array of records": lambda: np.zeros(2, [("a", "f8")]),
    "array without rows": lambda: np.zeros((0, 3)),
    "array without columns": lambda: np.zeros((4, 0)),
    "stack": lambda: np.ones((2, 4, 3)),
    "empty stack": lambda: np.ones((0, 4, 3)),
    "array 4-d": lambda: np.ones((2, 2, 2, 2)),
    "array read-only": lambda: np.broadcast_to(1.0, (4, 3)),
    "array transposed": lambda: A.T,
    "long array": lambda: np.ones(10**5),
    "array of array": lambda: array.array("d", [1.0, 2.0]),
    "memoryview": lambda: memoryview(b"abc"),
    "pair of arrays": lambda: (np.empty((4, 3)), np.empty((3, 3))),
    "list of arrays": lambda: [A, A],
    "list of Nones": lambda: [None] * 3,
    "pair of a number and None": lambda: [(0.5, None)],
    "Generator": lambda: np.random.default_rng(0),
    "RandomState": lambda: np.random.RandomState(0),
    "Random": lambda: random.Random(0),
    "schedule": lambda: _sample("schedule"),
    "root schedule": lambda: _sample("root"),
    "rational schedule": lambda: _sample("rational"),
    "trace": lambda: _sample("trace"),
    "norm": lambda: _sample("norm"),
    "modular norm": lambda: _sample("modular"),
    "list of norms": lambda: [_sample("norm")] * 2,
    "layer": lambda: _sample("layer"),
    "spectrum": lambda: _sample("spectrum"),
    "wrong spectrum": lambda: design.Spectrum(None, "x", 3, []),
    "result": lambda: _sample("result"),
    "axes": lambda: _sample("axes"),
}


# -- judging a call ---------------------------------------------------------------------------

# Messages of Python and NumPy for values that were not checked before.
LEAKED = re.compile(
    r"not supported between|argument must be a|unsupported operand|bad operand|has no len|"
    r"not iterable|not callable|not subscriptable|cannot unpack|could not convert|unhashable|"
    r"positional argument|can't convert|cannot convert|be interpreted|truth value|"
    r"Exceeds the limit|"
    r"object of type|not enough values|too many values|can't multiply|"
    r"ufunc|Cannot cast|can't be used|expected str, bytes|codec|must be real number|"
    r"matmul:|Input \w+ contains|iteration over|Value after"
)
# Words by which messages call an argument otherwise than its name.
SAID = {
    "array": "entries",
    "cost": "costs",
    "d": "g",
    "objective": "spectrum",
    "p": "degree",
    "traces": "Trace",
    "terms": "weight|term",
    "modules": "module",
    "stride": "degree",
    "density_or_singular_values": "singular values?|densit(y|ies)|spectrum",
    "k": "steps",
    "path": "JSON|suffix",
    "same": "steps",
    "s": "factor|singular values?",
    "steps": "step|image|schedule",
    "upper": "step|image|interval",
}
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+|0x[0-9a-f]{8,}")
INTERNAL = re.compile(r"polarlib\._|\b_[a-z]\w+\(\)|<locals>|__\w+__")


class TooLongError(BaseException):
    """Raised by the alarm; no `except Exception` swallows it."""


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Interrupt a call after ten seconds; where it does not let itself, end with a traceback."""
    main = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not main:
        yield
        return

    def stop(*_: Any) -> None:
        raise TooLongError

    # Of the processor's time, whatever else the machine does.
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def _allowed(entry: Entry) -> tuple[type[BaseException], ...]:
    also = [kinds for prefix, kinds in ALSO.items() if entry.name.startswith(prefix)]
    paths = (OSError,) if any(p.name == "path" for p in entry.parameters) else ()
    return (TypeError, ValueError, TheirsError, *paths, *itertools.chain.from_iterable(also))


def _named(message: str, names: tuple[str, ...], values: dict[str, Any]) -> bool:
    """Whether a message names one of the arguments, or its value."""
    if re.search(r"\b(arrays?|matrix|matrices|shape|dtype)\b|min\(m, n\)", message):
        return True
    for name in names:
        value = values[name]
        if re.search(rf"\b({name}|{SAID.get(name, name.rstrip('s'))})\b", message):
            return True
        known = [checks.shown(value)[:20], type(value).__name__]
        if isinstance(value, str | Path):
            known.append(str.__str__(value)[:20] if isinstance(value, str) else str(value)[:20])
        if any(k in message for k in known if k):
            return True
    return False


def judge(entry: Entry, wrong: dict[str, str]) -> str:
    """Call with wrong values; what is wrong with what leaves, or ""."""
    values = ROWS[entry.name]() | {name: WRONG[label]() for name, label in wrong.items()}
    for p in entry.parameters:
        name = p.name
        if (
            p.kind is p.VAR_POSITIONAL
            and name in wrong
            and not isinstance(values[name], list | tuple)
        ):
            values[name] = (values[name],)
    if "same" in wrong:
        values["same"] = {"steps": values["same"]}
    with warnings.catch_warnings(), contextlib.chdir(FOLDER):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UserWarning)  # documented: ours
        try:
            with _watched():
                entry.run(values)
        except TooLongError:
            return f"longer than {SECONDS} seconds"
        except TheirsError:
            return ""
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            if not isinstance(error, _allowed(entry)):
                return message[:300]
            text = str(error)
            # One of the caller's own operators, or the system's words.
            if isinstance(error, OSError | NotImplementedError | AssertionError | IndexError):
                return ""
            if "positional argument" in text and any(callable(values[name]) for name in wrong):
                return ""  # of a function of the caller's
            for found, why in (
                (len(text) > LONGEST, f"{len(text)} characters"),
                ("\n" in text and "path" not in wrong, "more than one line"),
                (ADDRESS.search(text), "an address"),
                (INTERNAL.search(text), "an internal name"),
                (LEAKED.search(text), "not in our words"),
                (not _named(text, tuple(wrong), values), "neither argument nor value"),
            ):
                if found:
                    return f"{why}: {message[:300]}"
    return ""


# -- the tests --------------------------------------------------------------------------------


def _examples() -> st.SearchStrategy[tuple[str, dict[str, str]]]:
    """A function, and wrong values for one or two of its arguments."""
    names = sorted(name for name, entry in interface().items() if entry.parameters)

    def wrong(name: str) -> st.SearchStrategy[tuple[str, dict[str, str]]]:
        arguments = st.sampled_from([p.name for p in interface()[name].parameters])
        return st.dictionaries(arguments, st.sampled_from(list(WRONG)), min_size=1, max_size=2).map(
            lambda values: (name, values)
        )

    return st.sampled_from(names).flatmap(wrong)


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Let a wrong value that is read without end raise MemoryError, not exhaust the machine."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    import resource  # of Unix alone

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_every_public_name_has_a_row() -> None:
    assert set(interface()) == set(ROWS), "a new public name needs its row in ROWS"
    for name, entry in interface().items():
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = {
            p.name for p in entry.parameters if p.default is p.empty and p.kind not in kinds
        }
        assert required <= set(ROWS[name]()), name


def test_rows_can_be_called() -> None:
    failed = {name: judge(entry, {}) for name, entry in interface().items()}
    # Of an array in memory, and a file that is not there.
    del failed["polarlib.polar_tall"], failed["polarlib.design.cost_tables.read_costs"]
    assert not any(failed.values()), {name: why for name, why in failed.items() if why}


def _run(examples: int, record_property: Callable[[str, object], None]) -> None:
    calls = 0

    @hypothesis.settings(
        max_examples=examples,
        database=None,
        phases=[hypothesis.Phase.generate],  # an example is short as it is
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(_examples())
    def check(example: tuple[str, dict[str, str]]) -> None:
        nonlocal calls
        calls += 1
        name, wrong = example
        assert judge(interface()[name], wrong) == "", f"{name} with {wrong}"

    check()
    record_property("wrong calls", calls)


def test_wrong_values(record_property: Callable[[str, object], None]) -> None:
    _run(700, record_property)


@pytest.mark.slow
def test_many_wrong_values(record_property: Callable[[str, object], None]) -> None:
    _run(5000, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in ROWS if interface()[name].parameters))
def test_every_wrong_value(name: str, record_property: Callable[[str, object], None]) -> None:
    entry, found, calls = interface()[name], {}, 0
    for p in entry.parameters:
        for label in WRONG:
            calls += 1
            if why := judge(entry, {p.name: label}):
                found[f"{p.name}={label}"] = why
    record_property("wrong calls", calls)
    assert not found
