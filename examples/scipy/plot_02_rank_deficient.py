"""
Rank-deficient gradients
========================

A gradient of an embedding, 256 × 128, has rank 63. ``polar(a, completion=False)`` returns a factor
with 63 singular values equal to 1 and 65 equal to 0; the default returns 128 equal to 1.
"""

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import files, plot

# %%
# Bytes that did not occur in the batch have gradients that are exactly zero.
a = files.sample_matrices()["transformer_embedding_early"]
partial = polarlib.polar(a, completion=False)
complete = polarlib.polar(a)
assert partial.rank == complete.rank == 63

# %%
# The partial isometry is the unique factor with the range of A. The completed factor has
# orthonormal columns, but A does not determine the completion. Both satisfy A = U H.
values = {
    "completion=True": np.linalg.svd(complete.unitary, compute_uv=False),
    "completion=False": np.linalg.svd(partial.unitary, compute_uv=False),
}
for u, h in (partial, complete):
    assert np.linalg.norm(u @ h - a) <= 1e-6 * np.linalg.norm(a)

with plot.style("column"):
    fig, ax = plt.subplots()
    index = np.arange(1, 129)
    looks = (("-", "s", plot.ORANGE, 7), ("--", "o", plot.BLUE, 8))
    for (name, s), (line, marker, color, every) in zip(values.items(), looks, strict=True):
        ax.plot(index, s, line, marker=marker, markevery=every, color=color, label=name)
    ax.set(xlabel="index of the singular value", ylabel="singular value of U", ylim=(-0.05, 1.15))
    ax.legend(loc="center left")
    plt.show()

# %%
# The numbers of the sentence, in float32:
assert np.allclose(values["completion=True"], 1, atol=1e-5)
assert np.allclose(values["completion=False"][:63], 1, atol=1e-5)
assert np.allclose(values["completion=False"][63:], 0, atol=1e-5)
