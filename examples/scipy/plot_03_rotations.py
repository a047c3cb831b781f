"""
Reflections and rotations
=========================

Of 2000 random 3 × 3 matrices, 983 have a nearest orthogonal matrix of determinant −1. The nearest
rotation has determinant 1 for all, at a cost: its squared distance is larger by 4 σ₃.
"""

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import plot

# %%
# Both functions take stacks of matrices.
a = np.random.default_rng(0).standard_normal((2000, 3, 3))
q = polarlib.nearest_orthogonal(a)
r = polarlib.nearest_rotation(a)
reflects = np.linalg.det(q) < 0

# %%
# Where the nearest orthogonal matrix is a rotation, both functions return the same matrix.
# Elsewhere the singular vector of the smallest singular value σ₃ changes its sign. The part of this
# vector in the squared distance then changes from (σ₃ − 1)² to (σ₃ + 1)².
smallest = np.linalg.svd(a, compute_uv=False)[:, -1]
growth = np.sum((r - a) ** 2, axis=(1, 2)) - np.sum((q - a) ** 2, axis=(1, 2))

with plot.style("column"):
    fig, ax = plt.subplots()
    some = slice(0, 300)
    for mask, marker, color, name in (
        (reflects, "s", plot.VERMILLION, "determinant −1"),
        (~reflects, "o", plot.BLUE, "determinant 1"),
    ):
        ax.plot(
            smallest[some][mask[some]], growth[some][mask[some]], marker, color=color, label=name
        )
    ax.set(xlabel="smallest singular value σ₃", ylabel="growth of the squared distance")
    ax.legend(title="nearest orthogonal matrix")
    plt.show()

# %%
# The claims:
assert np.sum(reflects) == 983
assert np.allclose(np.linalg.det(r), 1)
assert np.allclose(growth, np.where(reflects, 4 * smallest, 0), atol=1e-12)
