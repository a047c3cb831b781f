"""
A list of parameters
====================

``orthogonalize_all`` takes the ten bundled gradients in one call. Its results agree with those of
single calls to 1e-5 in float32. They are bitwise equal for the seven matrices outside of a batch.
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
# The largest difference of an entry:
shapes = [g.shape for g in gradients.values()]
batched = np.array([Counter(shapes)[s] > 1 and s[0] * s[1] <= 16_384 for s in shapes])
names = [f"{name}, {m} × {n}" for name, (m, n) in zip(gradients, shapes, strict=True)]

with plot.style("page"):
    fig, ax = plt.subplots(figsize=(7, 2.8))
    bars = ax.barh(names, 1e6 * apart, color=plot.SKY)
    ax.bar_label(bars, np.where(batched, "in a batch", "alone"), padding=3)
    ax.set(xlim=(0, 10), xlabel="largest difference of an entry, in 1e-6")
    ax.invert_yaxis()
    plt.show()

# %%
# The claims:
assert apart.max() < 1e-5
assert np.sum(batched) == 3
assert (apart[~batched] == 0).all()
