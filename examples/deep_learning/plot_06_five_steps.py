"""
Five steps on a gradient
========================

In simulated bfloat16, five steps of the default schedule end at a distance of 0.015 from U on a
gradient of condition number 63. Five steps of Polar Express end at 0.089, 5.8 times as far. On a
gradient of condition number 9500 the default is farther from U: 0.54, Polar Express 0.47.
"""

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import files, plot

# %%
# ``measure`` computes the singular values after each step, and the distance ‖Q − U‖_F / √n to the
# polar factor U. Both gradients have n = 128 columns.
GRADIENTS = {
    "transformer_mlp_in_late": "(a) feed-forward layer, late",
    "transformer_attention_qkv_early": "(b) attention layer, early",
}
SCHEDULES = {
    "Muon": polarlib.schedule("jordan", 5),
    "Polar Express": polarlib.schedule("polar_express", 5),
    "default": polarlib.default_schedule("bfloat16"),
}
LOOKS = (("s", plot.ORANGE), ("^", plot.GREEN), ("o", plot.BLUE))

# %%
# Lines: the polynomial s(x) of each schedule. Marks: measured, every third singular value. Grey:
# within 2 % of 1.
distances = []
with plot.style("page"):
    fig, axes = plt.subplots(1, 2, figsize=(6.9, 2.4), sharey=True)
    for ax, (name, title) in zip(axes, GRADIENTS.items(), strict=True):
        a = files.sample_matrices()[name]
        s = np.linalg.svd(a, compute_uv=False)
        x = np.geomspace(s[-1], s[0], 1200)
        ax.axhspan(0.98, 1.02, color="0.85", linewidth=0)
        for (label, schedule), (mark, color) in zip(SCHEDULES.items(), LOOKS, strict=True):
            trace = polarlib.measure(a, schedule, precision="bfloat16")
            distances.append(trace.distance[-1])
            label = f"{label} ({distances[-1]:#.2g})"
            image = schedule(x / np.linalg.norm(s) / schedule.input_safety)
            ax.semilogx(x / s[0], image, color=color, linewidth=0.5, alpha=0.7)
            after = trace.singular_values[-1]
            ax.plot(s[::3] / s[0], after[::3], mark, color=color, markersize=2.5, label=label)
        ax.set_title(f"{title}, condition number {s[0] / s[-1]:.0f}")
        ax.set(xlabel="singular value, relative to the largest", ylim=(0, 1.28))
        ax.legend(title="schedule (distance to U)", loc="lower right")
    axes[0].set_ylabel("singular value after five steps")
    plt.show()

# %%
# The claims:
assert np.allclose(distances, [0.19, 0.089, 0.015, 0.60, 0.47, 0.54], rtol=0.03)
assert 5.6 < distances[1] / distances[2] < 6.0
