"""
U and H, checked
================

On the 144 matrices of ``testing.zoo(8)``, the largest errors of ``polar`` are 1 eps in
orthogonality and 12 to 13 eps in backward error, by the kernel of OpenBLAS. Those of
``scipy.linalg.polar`` are 8 to 13 eps and 18 to 22 eps.
"""

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg

import polarlib
from polarlib import plot, testing

# %%
# Both errors are computed here, in the same way for both libraries. H is multiplied by a power of
# two first, because some matrices have squares that overflow.
EPS = np.finfo(float).eps


def errors(a, u, h):
    """Return the orthogonality of U and the backward error of A = U H, in eps."""
    tall = u if u.shape[0] >= u.shape[1] else u.conj().T
    k = tall.shape[1]
    orthogonality = np.linalg.norm(tall.conj().T @ tall - np.eye(k)) / np.sqrt(k)
    a, h = (x * 0.5 ** np.frexp(abs(a).max())[1] for x in (a, h))
    backward = np.linalg.norm(u @ h - a) / (np.linalg.norm(a) or 1)
    return orthogonality / EPS, backward / EPS


matrices = [a for _, a in testing.zoo(8)]
polarlib_errors = np.array([errors(a, *polarlib.polar(a)) for a in matrices])
scipy_errors = np.array([errors(a, *scipy.linalg.polar(a)) for a in matrices])

# %%
# Each point is one matrix. Below the dashed line the error of polarlib is the smaller one.
with plot.style("page"):
    fig, axes = plt.subplots(1, 2, figsize=(7, 3))
    for k, (ax, name) in enumerate(zip(axes, ("orthogonality", "backward error"), strict=True)):
        end = 1.05 * max(polarlib_errors[:, k].max(), scipy_errors[:, k].max())
        ax.plot([0, end], [0, end], "--", color=plot.INK, linewidth=0.7)
        ax.plot(scipy_errors[:, k], polarlib_errors[:, k], "o", color=plot.BLUE, alpha=0.6)
        ax.set(xlabel=f"{name}, SciPy (eps)", ylabel=f"{name}, polarlib (eps)", aspect="equal")
    plt.show()

# %%
# The largest errors of this run. The assertions allow 2 eps and 20 eps, for other libraries.
for name, found in (("polarlib", polarlib_errors), ("SciPy", scipy_errors)):
    print(f"{name}: orthogonality {found.max(0)[0]:.1f} eps, backward error {found.max(0)[1]:.1f}")
assert len(matrices) == 144
assert (polarlib_errors.max(0) < (2, 20)).all()
assert (polarlib_errors.max(0) < scipy_errors.max(0)).all()
