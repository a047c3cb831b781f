"""
Why safety factors exist
========================

The schedule ``cans`` has no safety factor. In simulated bfloat16, five of its steps take the
singular value 1 of a constant matrix to 8.5e10. Five steps of Polar Express take it to 1.008, five
of the default schedule to 0.98.
"""

import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import plot

# %%
# A schedule for [l, 1] grows fast above 1, where its polynomials are not bounded. A safety factor
# makes each step valid up to a larger upper end. polarlib warns of schedules without one.
SCHEDULES = {
    "cans": polarlib.schedule("cans"),
    "Polar Express": polarlib.schedule("polar_express"),
    "default": polarlib.default_schedule("bfloat16"),
}
ones = np.ones((256, 256), np.float32)
largest = {}
for name, schedule in SCHEDULES.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        spectral = replace(schedule, normalisation="spectral")
        largest[name] = polarlib.measure(ones, spectral, precision="bfloat16").singular_values[:, 0]

# %%
# The only nonzero singular value, step by step.
with plot.style("column"):
    fig, ax = plt.subplots()
    looks = (("--s", plot.VERMILLION), ("-.^", plot.GREEN), ("-o", plot.BLUE))
    for (name, values), (line, color) in zip(largest.items(), looks, strict=True):
        ax.semilogy(values, line, color=color, label=name)
    ax.set(xlabel="step", ylabel="largest singular value")
    ax.legend()
    plt.show()

# %%
# The claims:
print({name: f"{values[-1]:.4g}" for name, values in largest.items()})
assert [len(values) for values in largest.values()] == [6, 6, 6]
assert 1e10 < largest["cans"][-1] < 1e12
assert abs(largest["Polar Express"][-1] - 1.008) < 0.002
assert abs(largest["default"][-1] - 0.98) < 0.002
assert [s.is_safe_in("bfloat16") for s in SCHEDULES.values()] == [False, True, True]
