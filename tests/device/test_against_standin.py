"""The mock for CuPy gives what CuPy gives, or raises: see against_standin.py."""

from device import running


def test_the_standin_is_not_lenient():
    running.need("cupy")
    real = running.run("against_standin", "real")
    standin = running.run("against_standin", "standin")
    assert set(real) == set(standin)
    raising = {name for name, (result, _) in standin.items() if result.startswith("raises")}
    lenient = {n: (real[n], standin[n]) for n in real if n not in raising and real[n] != standin[n]}
    assert lenient == {}
    # Where it raises, CuPy does so too in most calls; otherwise it would prove nothing.
    assert sum(real[name][0].startswith("raises") for name in raising) > len(raising) / 2
    assert len(raising) < len(real) / 4
