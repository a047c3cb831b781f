"""CuPy arrays on another device than the current one, and in captured streams: see places.py."""

import pytest

from device import running


@pytest.mark.parametrize("options", [(), ("--peers",)])
def test_results_stay_on_the_device_of_the_array(options):
    running.need("cupy")
    assert running.run("places", *options)["another device"] == {}


def test_captured_streams_are_refused_in_one_sentence():
    running.need("cupy")
    assert running.run("places")["capture"] == {}
