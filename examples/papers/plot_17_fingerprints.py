"""
Where do coefficients come from?
================================

The first step of ``polar_express_102`` is the best polynomial of degree 5 on [0.0204, 1.02], times
1.079. Its documentation states the cushion 0.02 and the safety factor 1.02: 0.0204 = 0.02 · 1.02.
"""

import matplotlib.pyplot as plt

import polarlib
from polarlib import design, plot

# %%
# A step of degree 5 has three coefficients. They determine the factor (gain) by which it differs
# from a best polynomial, and both ends of the interval of that polynomial.
NAMES = (
    "polar_express_raw",
    "polar_express",
    "polar_express_105",
    "polar_express_102",
    "cans",
    "turbo_muon",
    "you",
    "jordan",
)
prints = {name: design.fingerprint(polarlib.schedule(name).steps[0]) for name in NAMES}

with plot.style("column"):
    fig, ax = plt.subplots()
    lower = [found.lower for found in prints.values()]
    lengths = [found.upper - found.lower for found in prints.values()]
    ax.barh(list(prints), lengths, left=lower, height=0.4, color=plot.BLUE)
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.set(xlabel="design interval of the first step", xlim=(5e-4, 2))
    plt.show()

# %%
# Not every step is one: the Taylor polynomial has another aim.
try:
    design.fingerprint(polarlib.schedule("newton_schulz_5").steps[0])
except ValueError as error:
    print(error)

# %%
# The claims:
for name, found in prints.items():
    print(f"{name}: [{found.lower:.4f}, {found.upper:.4f}], gain {found.gain:.4f}")
first = prints["polar_express_102"]
assert abs(first.lower - 0.0204) < 1e-10
assert abs(first.upper - 1.02) < 1e-10
assert round(first.gain, 3) == 1.079
assert all(found.mismatch < 1e-15 for found in prints.values())
