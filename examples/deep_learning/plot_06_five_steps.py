"""
Five steps on a gradient
========================

In simulated bfloat16, five steps of the default schedule end 5.8 times closer to U than five of
Polar Express on a gradient of condition number 63 (0.015 and 0.089). On one of condition number
9500 they end farther away (0.54 and 0.47).
"""

import matplotlib.pyplot as plt
import numpy as np

import polarlib
from polarlib import files, plot

# %%
# ``measure`` computes the singular values after each step, and the distance ‖Q − U‖_F / √n to the
# polar factor U. Both matrices have n = 128 columns.
NAMES = ("transformer_mlp_in_late", "transformer_attention_qkv_early")
SCHEDULES = {
    "Muon": polarlib.schedule("jordan", 5),
    "Polar Express": polarlib.schedule("polar_express", 5),
    "default": polarlib.default_schedule("bfloat16"),
}


# %%
# Lines: the polynomial s(x) of each schedule, where x is the singular value after the division by
# the Frobenius norm. Marks: measured, every third singular value. Grey: within 2 % of 1.
LOOKS = (("s", plot.ORANGE, "--"), ("^", plot.GREEN, "-."), ("o", plot.BLUE, "-"))
distances = {}
with plot.style("page"):
    fig, axes = plt.subplots(1, 2, figsize=(6.9, 2.4), sharey=True)
    for ax, name, letter in zip(axes, NAMES, "ab", strict=True):
        a = files.sample_matrices()[name]
        s = np.linalg.svd(a, compute_uv=False)
        ax.axhspan(0.98, 1.02, color="0.85", linewidth=0)
        for (label, schedule), (marker, color, line) in zip(SCHEDULES.items(), LOOKS, strict=True):
            trace = polarlib.measure(a, schedule, precision="bfloat16")
            distances[label, name] = trace.distance[-1]
            x = np.geomspace(s[-1], s[0], 500)
            image = schedule(x / np.linalg.norm(s) / schedule.input_safety)
            ax.semilogx(x / s[0], image, line, color=color, linewidth=0.8)
            shown = f"{label} ({distances[label, name]:.2g})"
            ax.plot(
                s[::3] / s[0],
                trace.singular_values[-1][::3],
                marker,
                color=color,
                markersize=2.5,
                label=shown,
            )
        title = (
            f"({letter}) {name.removeprefix('transformer_')}, condition number {s[0] / s[-1]:.2g}"
        )
        ax.set(xlabel="singular value / largest", ylim=(0, 1.28), title=title)
        ax.legend(title="schedule (distance to U)", loc="lower right")
    axes[0].set_ylabel("singular value after five steps")
    plt.show()

# %%
# The claims:
first, second = ([distances[label, name] for label in SCHEDULES] for name in NAMES)
assert np.allclose(first, [0.19, 0.089, 0.015], rtol=0.03)
assert np.allclose(second, [0.60, 0.47, 0.54], rtol=0.03)
assert 5.5 < first[1] / first[2] < 6.1
