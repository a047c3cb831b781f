"""
Scale does not matter
=====================

The result of ``orthogonalize`` is bitwise the same for G and 2^k G, for every k from −115 to 127 in
float32. An implementation that divides by the norm plus 1e-7 changes from 2^−17 downward.
"""

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import files, plot

# %%
# ``orthogonalize`` divides by a power of two first, which is exact, so that sums of squares neither
# overflow nor underflow. The common implementation does not.
g = files.sample_matrices()["transformer_mlp_in_late"]
a, b, c = polarlib.schedule("jordan").steps[0]


def common(x):
    """Five steps of Muon, in float32, after a division by the Frobenius norm plus 1e-7."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = x.T / (np.linalg.norm(x) + np.float32(1e-7))
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T


def changed(f, k):
    """Return the share of entries that differ between f(2^k G) and f(G)."""
    return np.mean(f(np.ldexp(g, k)) != f(g))


ks = [*range(-139, 128, 6), -115, 127]
ks.sort()
share = {
    "division by norm + 1e-7": [100 * changed(common, k) for k in ks],
    "orthogonalize": [100 * changed(polarlib.orthogonalize, k) for k in ks],
}

# %%
# Below 2^−115 the entries of 2^k G are themselves rounded to subnormal numbers.
with plot.style("column"):
    fig, ax = plt.subplots()
    looks = (("--s", plot.ORANGE), ("-o", plot.BLUE))
    for (name, values), (line, color) in zip(share.items(), looks, strict=True):
        ax.plot(ks, values, line, color=color, label=name, markevery=2)
    ax.set(xlabel="exponent $k$ of the scale $2^k$", ylabel="entries that change (%)")
    ax.legend(loc="center")
    plt.show()

# %%
# The claim:
exact = [k for k in ks if changed(polarlib.orthogonalize, k) == 0]
print(f"bitwise equal from 2^{exact[0]} to 2^{exact[-1]}")
assert exact == [k for k in ks if k >= -115]
