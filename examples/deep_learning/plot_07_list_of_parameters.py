"""
A list of parameters
====================

``orthogonalize_all`` takes the ten bundled gradients in one call. The result of each agrees with
that of a single call to 1e-5 in float32, and is bitwise equal where no other matrix has its shape.
"""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import files, plot

# %%
# The matrices of equal shape and up to 16,384 entries are stacked and multiplied together. The
# library of the products rounds their sums in another order. All other matrices run alone.
gradients = files.sample_matrices()
together = polarlib.orthogonalize_all(list(gradients.values()))
single = [polarlib.orthogonalize(g) for g in gradients.values()]
apart = np.array([abs(p - q).max() for p, q in zip(together, single, strict=True)])

# %%
# The largest difference of an entry. Hatched bars: matrices that run in one batch.
shapes = [g.shape for g in gradients.values()]
batched = np.array([Counter(shapes)[s] > 1 and s[0] * s[1] <= 16_384 for s in shapes])
names = [
    f"{name.replace('_', ' ')}, {m} × {n}" for name, (m, n) in zip(gradients, shapes, strict=True)
]

with plot.style("page"):
    fig, ax = plt.subplots(figsize=(7, 2.8))
    for some, color, hatch, label in (
        (batched, plot.ORANGE, "///", "in a batch"),
        (~batched, plot.BLUE, "", "alone"),
    ):
        height = np.maximum(apart[some], 1e-9)
        ax.barh(np.flatnonzero(some), height, color=color, hatch=hatch, label=label)
    ax.set(xscale="log", xlim=(5e-10, 1e-4), xlabel="largest difference of an entry (1e-9: none)")
    ax.set_yticks(range(10), names)
    ax.axvline(1e-5, linestyle=":", color=plot.INK)
    ax.invert_yaxis()
    ax.legend(loc="lower right")
    plt.show()

# %%
# The claims:
assert apart.max() < 1e-5
assert np.sum(batched) == 3
assert (apart[~batched] == 0).all()
