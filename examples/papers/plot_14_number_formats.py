"""
Designing for a number format
=============================

Five steps of degree 5 for [0.001, 1] have a worst error of 0.113 without a margin for rounding.
With the margin it is 0.124 for bfloat16 and 0.115 for float16. With rounding, the errors are proved
to be at most 0.141 and 0.117.
"""

import matplotlib.pyplot as plt

from polarlib import design, plot

# %%
# ``for_precision`` designs every step for an interval that includes the rounding errors of the
# steps before it. Without rounding, ``greedy`` is optimal.
counts = range(3, 8)
products = [3 * k for k in counts]
exact = [design.greedy(1e-3, [5] * k).error() for k in counts]
schedules = {
    name: [design.for_precision(name, 1e-3, steps=k) for k in counts]
    for name in ("bfloat16", "float16")
}

# %%
# ``certify(format=)`` encloses the worst error with all roundings of the products. Without rounding
# the error falls quadratically; in a format it stays above its unit roundoff.
bounds = {
    name: [s.certify(1e-3, format=name).upper for s in found] for name, found in schedules.items()
}

with plot.style("column"):
    fig, ax = plt.subplots()
    looks = (("-o", plot.BLUE), ("--s", plot.VERMILLION))
    for (name, values), (line, color) in zip(bounds.items(), looks, strict=True):
        ax.semilogy(products, values, line, color=color, label=f"bound in {name}")
    ax.semilogy(products, exact, "-.", color=plot.INK, label="without rounding")
    ax.set(xlabel="matrix products", ylabel="worst error on [0.001, 1]", xticks=products)
    ax.set_ylim(bottom=2e-4)
    ax.legend(loc="lower left")
    plt.show()

# %%
# The claims:
assert round(schedules["bfloat16"][2].error(), 3) == 0.124
assert round(schedules["float16"][2].error(), 3) == 0.115
assert round(exact[2], 3) == 0.113
assert bounds["bfloat16"][2] < 0.141
assert bounds["float16"][2] < 0.117
