"""NVIDIA's Emerging-Optimizers: Newton-Schulz, spectral clipping and the optimizers on them.

An adapter of frame.py.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import typing
from pathlib import Path
from typing import Any

import frame

import polarlib
from polarlib import norms

NAME = "Emerging-Optimizers"
REPOSITORY = "https://github.com/NVIDIA-NeMo/Emerging-Optimizers"
COMMIT = "fd7729267109a8848709e9406bf19e53e970c3f4"
PACKAGE = "emerging_optimizers"
DISTRIBUTION = "emerging-optimizers"
REQUIRES = ("torch", "absl")
TESTS = (
    "tests/test_muon_utils.py",
    "tests/test_spectral_clipping_utils.py",
    "tests/test_orthogonalized_optimizer.py",
    "tests/test_adaptive_muon.py",
    "tests/test_polargrad.py",
    "tests/test_spel.py",
    "tests/test_row_norm.py",
    "tests/test_matrix_root_inverse_utils.py",
    "tests/test_distributed_muon_utils_cpu.py",
)
PATHS = (".", "tests")
# Python 3.12 is asked for: on 3.11 two things are taken out of the copy in memory.
NOTE = (
    "Wrong arguments, coefficients of one's own, no steps at all, and process groups are left to "
    "the package's own function. "
    "tests/test_triton_kernels.py is left out: it imports Triton, for a CUDA device."
)
NOT_RUN = {
    "test_muon_utils.py::TestNewtonSchulz::test_newtonschulz_custom_coeff_close_to_reference*": (
        "its polynomial of degree 25 makes 1.5e-6 of one rounding of the norm, above the limit of "
        "1e-6; polarlib and the package's reference are equally far from double precision, 0.6e-6 "
        "to 5e-6"
    ),
    "test_muon_utils.py::TestNewtonSchulz::test_newton_schulz_use_syrk_falls_back*": (
        "counts calls of the package's own steps, which are replaced"
    ),
    "test_distributed_muon_utils_cpu.py::*": (
        "for processes of torchrun, each with a shard as a plain tensor; polarlib accepts DTensors"
    ),
}


def schedule_of(utils: Any, steps: int, kind: str) -> polarlib.Schedule:
    """Their coefficients as a schedule of ours, repeated as they do it; of a cubic step two."""
    last = kind in ("polar_express", "cans", "deepseekv4")
    known = utils._COEFFICIENT_SETS[kind]
    triples = utils.get_coefficient_iterator(steps, known, "repeat_last" if last else "cycle")
    return polarlib.Schedule(steps=[t[: 2 + bool(t[2])] for t in triples])


def install() -> None:
    """Replace their functions before the tests import them."""
    import torch
    from absl import flags

    # Every test file defines the same flags, to be read from a command line of its own.
    for define in ("DEFINE_enum", "DEFINE_integer"):
        setattr(flags, define, allowing(getattr(flags, define)))
    flags.FLAGS.mark_as_parsed()
    if sys.version_info < (3, 12):
        take_out_of_the_language()
    import emerging_optimizers.orthogonalized_optimizers.muon_utils as utils

    def newton_schulz(
        x: Any,
        steps: int,
        coefficient_type: str = "quintic",
        custom_coefficient_sets: Any = None,
        eps: float = 1e-15,
        transpose: Any = None,
        tp_group: Any = None,
        use_syrk: bool = False,
        normalize_in_double: bool = False,
    ) -> Any:
        given = x, steps, coefficient_type, custom_coefficient_sets, eps, transpose, tp_group
        fixed = coefficient_type == "cubic5" and steps != 5
        known = coefficient_type in utils._COEFFICIENT_SETS
        taken = x.ndim in (2, 3) and x.dtype == torch.float32 and steps > 0 and known and not fixed
        if not taken or tp_group is not None:
            return theirs(*given, use_syrk, normalize_in_double)
        schedule = schedule_of(utils, steps, coefficient_type)
        half = torch.get_float32_matmul_precision() == "medium"
        return polarlib.orthogonalize(x, schedule=schedule, precision="bfloat16" if half else None)

    def spectral_clip(X: Any, sigma_min: float = -1.0, sigma_max: float = 1.0) -> Any:
        return norms.spectral_clip(X, sigma_max, low=max(sigma_min, 0.0))

    def spectral_hardcap(X: Any, beta: float = 1.0) -> Any:
        return norms.spectral_clip(X, beta)

    base = "emerging_optimizers.orthogonalized_optimizers"
    theirs = frame.replace(f"{base}.muon_utils.newton_schulz", newton_schulz)
    frame.replace(f"{base}.spectral_clipping_utils.spectral_clip", spectral_clip)
    frame.replace(f"{base}.spectral_clipping_utils.spectral_hardcap", spectral_hardcap)
    roots = "emerging_optimizers.legacy_soap.matrix_root_inverse_utils"
    frame.replace(f"{roots}.inv_root_via_eigh", lambda x, eps=1e-12: polarlib.inverse_root(x, 2))

    def scaled_cans(x: Any, eps: float = 1e-12) -> Any:
        half = torch.get_float32_matmul_precision() == "medium"
        if x.dtype != torch.float32 or half:
            return cans(x, eps)
        return polarlib.inverse_root(x, 2)

    cans = frame.replace(f"{roots}.mat_root_inv_via_scaled_cans", scaled_cans)


def take_out_of_the_language() -> None:
    """Let Python 3.11 read what asks for 3.12: a decorator, and type parameters of a function."""
    import typing_extensions

    typing.override = typing_extensions.override
    spec = importlib.util.find_spec("emerging_optimizers.registry")
    text = re.sub(r"(def \w+)\[.*?\]\(", r"\1(", Path(spec.origin).read_text("utf-8"))
    text = "from __future__ import annotations\n" + text
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile(text, spec.origin, "exec"), vars(module))


def allowing(define: Any) -> Any:
    """A definition of a flag that may be made again."""
    return lambda *args, **kwargs: define(*args, **{"allow_override": True} | kwargs)
