"""
A proof instead of sampling
===========================

No five steps of degree 5 have a worst error below 0.113448 on [0.001, 1]. The five steps of
``greedy`` reach this bound to 1e-15, by interval arithmetic.
"""

import matplotlib.pyplot as plt
import numpy as np

from polarlib import design, plot

# %%
# ``least_error`` computes the bound: it is attained by the composition of best steps, each on the
# image of those before it. ``certify`` encloses the worst error of the stored coefficients.
schedule = design.greedy(1e-3, [5] * 5)
certificate = schedule.certify()
bound = design.least_error(1e-3, [5] * 5)
print(certificate)

# %%
# Near the lower end the error curve touches both bounds in turn (dotted); there are 3^5 + 1
# such points up to x = 1. Samples give a lower bound of the worst error, and no upper bound.
sampled = abs(schedule(np.linspace(1e-3, 1, 1001)[1:]) - 1).max()
with plot.style("column"):
    fig, ax = plt.subplots()
    x = np.geomspace(1e-3, 0.05, 2000)
    ax.semilogx(x, 1 - schedule(x), color=plot.BLUE)
    for sign in (-1, 1):
        ax.axhline(sign * bound, linestyle=":", color=plot.INK)
    ax.set(xlabel="singular value x of the normalised input", ylabel="error 1 − s(x)")
    plt.show()

# %%
# The claims:
print(f"1000 samples: {sampled:.6f}, certified: {certificate.upper:.6f}")
assert round(bound, 6) == 0.113448
assert certificate.upper - bound < 1e-15
assert sampled < certificate.lower
