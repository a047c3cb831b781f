"""
Scale does not matter
=====================

The result of ``orthogonalize`` is bitwise the same for G and 2^k G, for every k from −115 to 127 in
float32. An implementation that divides by the norm plus 1e-7 changes by 14 % at 2^−19, and
returns zeros at 2^71.
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


def changes(f):
    """Return the relative differences of f(2^k G) and f(G), for all k."""
    once = f(g)
    return [np.linalg.norm(f(np.ldexp(g, k)) - once) / np.linalg.norm(once) for k in ks]


ks = [*range(-139, 128, 6), 127]
change = {
    "division by norm + 1e-7": changes(common),
    "orthogonalize": changes(polarlib.orthogonalize),
}

# %%
# Below 2^−115 the entries of 2^k G are themselves rounded to subnormal numbers.
with plot.style("column"):
    fig, ax = plt.subplots()
    looks = (("--s", plot.ORANGE), ("-o", plot.BLUE))
    for (name, values), (line, color) in zip(change.items(), looks, strict=True):
        ax.plot(ks, values, line, color=color, label=name, markevery=2)
    ax.set(xlabel="exponent $k$ of the scale $2^k$", ylabel="relative change of the result")
    ax.set_yscale("symlog", linthresh=1e-8, linscale=0.5)
    ax.set(yticks=[0, 1e-8, 1e-6, 1e-4, 1e-2, 1], ylim=(-3e-9, 1e3))
    ax.legend(loc="upper center")
    plt.show()

# %%
# The claim:
exact = [k for k, c in zip(ks, change["orthogonalize"], strict=True) if c == 0]
print(f"bitwise equal from 2^{exact[0]} to 2^{exact[-1]}")
other = dict(zip(ks, change["division by norm + 1e-7"], strict=True))
assert 0.13 < other[-19] < 0.145
assert other[71] == 1
assert exact == [k for k in ks if k >= -115]
