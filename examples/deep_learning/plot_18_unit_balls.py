"""
Unit balls and duality gaps
===========================

The linear minimisation oracle (LMO) of the spectral norm gives the direction of the largest
decrease. Five steps of the default schedule miss 1.8 % of this decrease on a gradient, at equal
length. Five steps of Polar Express miss 12 %, five of Muon 23 %.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import files, norms, plot

# %%
# The LMO of a norm returns the point T of the unit ball with the largest inner product with G. Its
# gap is 1 − ⟨G, T⟩ / (‖T‖ ‖G‖_dual): zero for the exact LMO.
g = files.sample_matrices()["transformer_mlp_in_late"].astype(float)
spectral = norms.spectral()
counts = np.arange(1, 9)
gaps = {}
for name, label in (("jordan", "Muon"), ("polar_express", "Polar Express"), ("auto", "default")):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", polarlib.ScheduleWarning)
        found = [polarlib.orthogonalize(g, schedule=name, steps=int(k)) for k in counts]
    gaps[label] = [float(norms.duality_gap(spectral, g, t)) for t in found]

# %%
# (a) The unit balls of four norms, in the plane of two singular values; marks show where the LMO
# ends. (b) The gap over the number of steps. A default schedule is designed for each number. The
# largest singular value after five steps, 1.02, is nearly all of its gap. From six steps on, Polar
# Express has the smaller gap.
with plot.style("page"):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6))
    for norm, label in (
        (norms.spectral(), "spectral"),
        (norms.frobenius(), "Frobenius"),
        (norms.nuclear(), "nuclear"),
        (norms.f_muon(0.5), "f_muon(0.5)"),
    ):
        plot.unit_ball(norm, left, label=label, title="(a) unit balls")
    looks = (("--s", plot.ORANGE), ("-.^", plot.GREEN), ("-o", plot.BLUE))
    for (label, values), (line, color) in zip(gaps.items(), looks, strict=True):
        right.semilogy(counts, values, line, color=color, label=label)
    right.set(xlabel="number of steps", ylabel="duality gap", title="(b) gap", ylim=(1e-7, 1))
    right.legend(loc="lower left")
    plt.show()

# %%
# The claims:
at_five = [values[4] for values in gaps.values()]
print("gaps after five steps:", ", ".join(f"{gap:.3f}" for gap in at_five))
assert gaps["Polar Express"][5] < gaps["default"][5]
assert np.allclose(at_five, [0.23, 0.12, 0.018], rtol=0.05)
