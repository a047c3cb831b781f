"""Kernels of CuPy's calls compile for devices that are not there: see kernels.py."""

import pytest

from device import running


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles(capability):
    running.need("cupy")
    found = running.run("kernels", "--capability", str(capability))
    assert found["faults"] == []
    assert found["a wrong kernel is refused"]
    assert sum(found["modules"].values()) > 10
