"""
Root of a singular covariance
=============================

The second-moment matrix C of a gradient is 128 × 128 and of rank 63. ``sqrtm_psd(C)`` is real and
exactly symmetric, and its square is C to 3e-15. ``scipy.linalg.sqrtm`` returns a complex matrix,
which is symmetric to 3e-7 only.
"""

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg

import polarlib
from polarlib import files, plot

# %%
# 65 eigenvalues of C are zero up to rounding, and some of the rounded ones are negative. The square
# root of a negative number is imaginary, hence the complex result of the general function.
g = files.sample_matrices()["transformer_embedding_early"].astype(float)
c = g.T @ g
root = polarlib.sqrtm_psd(c)
general = scipy.linalg.sqrtm(c)

# %%
# The 65 smallest eigenvalues of both roots, divided by the largest one: those of SciPy's root leave
# the real axis.
with plot.style("column"):
    fig, ax = plt.subplots()
    for name, r, marker, color in (
        ("scipy.linalg.sqrtm", general, "s", plot.ORANGE),
        ("polarlib.sqrtm_psd", root, "o", plot.BLUE),
    ):
        values = np.linalg.eigvals(r)
        values = values[np.argsort(abs(values))] / abs(values).max()
        ax.plot(values[:65].real * 1e9, values[:65].imag * 1e9, marker, color=color, label=name)
    ax.set(xlabel="real part, in 1e-9", ylabel="imaginary part, in 1e-9")
    ax.legend()
    plt.show()

# %%
# The claims:
residual = np.linalg.norm(root @ root - c) / np.linalg.norm(c)
asymmetry = abs(general - general.T).max() / abs(general).max()
print(f"polarlib: {root.dtype}, residual {residual:.1e}, asymmetry {abs(root - root.T).max()}")
print(f"SciPy: {general.dtype}, asymmetry {asymmetry:.1e}")
assert np.isrealobj(root)
assert np.array_equal(root, root.T)
assert residual < 1e-14
assert np.iscomplexobj(general)
assert asymmetry > 1e-9
