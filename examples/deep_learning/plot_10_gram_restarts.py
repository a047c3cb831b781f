"""
Gram form and restarts
======================

In simulated bfloat16, five steps of Polar Express in the Gram form give a matrix of spectral norm
1.4e12 on an attention gradient. With restarts after steps 1, 2 and 3 the norm is 1.13.
"""

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import design, files, plot

# %%
# The Gram form multiplies n × n matrices only. Rounding makes small eigenvalues of the Gram matrix
# negative, and the steps magnify them. A restart applies the steps so far to X and forms a new Gram
# matrix. ``design.restarts`` computes after which steps that is necessary.
g = files.sample_matrices()["transformer_attention_qkv_early"]
schedule = polarlib.schedule("polar_express", 5)
restarts = design.restarts(schedule, "bfloat16")


def largest(steps, after):
    """Return the spectral norm after some steps, with restarts after some of them."""
    after = [k for k in after if k < steps]
    first = schedule.truncate(steps)
    q = polarlib.orthogonalize(g, schedule=first, form="gram", restarts=after, precision="bfloat16")
    return np.linalg.norm(q.astype(float), 2)


counts = range(1, 6)
without = [largest(k, ()) for k in counts]
with_restarts = [largest(k, restarts) for k in counts]

with plot.style("column"):
    fig, ax = plt.subplots()
    ax.semilogy(counts, without, "--s", color=plot.VERMILLION, label="no restart")
    label = f"restarts after {', '.join(map(str, restarts))}"
    ax.semilogy(counts, with_restarts, "-o", color=plot.BLUE, label=label)
    ax.set(xlabel="number of steps", ylabel="largest singular value", xticks=counts)
    ax.legend()
    plt.show()

# %%
# The claims; the values without restarts depend on the order of sums, hence the tolerance:
print(f"no restart: {without[-1]:.2g}, with restarts: {with_restarts[-1]:.3f}")
assert restarts == (1, 2, 3)
assert 1e11 < without[-1] < 1e13
assert 1.10 < with_restarts[-1] < 1.15
