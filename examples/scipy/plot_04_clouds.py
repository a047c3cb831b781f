"""
Aligning point clouds
=====================

``align(a, b, weights=w, translation=False).rotation`` is the transpose of the matrix of SciPy's
``Rotation.align_vectors(b, a, weights=w)``, to 1e-12. Here weights reduce the angle between the
rotation found and the true one from 16° to 1°.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.transform import Rotation

import polarlib
from polarlib import plot

# %%
# A helix of 60 points, turned and shifted. Ten of the targets are wrong, and have small weights.
rng = np.random.default_rng(0)
t = np.linspace(0, 4 * np.pi, 60)
points = np.stack([np.cos(t), np.sin(t), t / 6], axis=1)
turn = Rotation.from_euler("zyx", [50, 20, 10], degrees=True).as_matrix().T
targets = points @ turn + [2.5, 1.0, 0.0] + 0.03 * rng.standard_normal(points.shape)
wrong = np.arange(60) >= 50
targets[wrong] += [0.0, 1.5, 0.0]
weights = np.where(wrong, 0.02, 1.0)

equal = polarlib.align(points, targets)
weighted = polarlib.align(points, targets, weights=weights)


def angle(found):
    """Return the angle between a rotation and the true one, in degrees."""
    return np.degrees(Rotation.from_matrix(found.rotation @ turn.T).magnitude())


# %%
# The first two coordinates, before and after. A result is applied to points by calling it.
with plot.style("page"):
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.3), sharex=True, sharey=True)
    clouds = (points, equal(points), weighted(points))
    names = ("before", "equal weights", "weights 0.02 for wrong targets")
    for ax, cloud, name in zip(axes, clouds, names, strict=True):
        ax.plot(*targets[~wrong, :2].T, "o", color=plot.SKY, label="target")
        ax.plot(*targets[wrong, :2].T, "s", color=plot.VERMILLION, label="wrong target")
        ax.plot(*cloud[:, :2].T, "x", color=plot.INK, label="point")
        ax.set(xlabel="first coordinate", title=name, aspect="equal")
    axes[0].set_ylabel("second coordinate")
    axes[0].legend()
    plt.show()

# %%
# The comparison with SciPy, about the origin. ``procrustes`` takes the roots of the weights.
b = targets - weighted.translation
scipys = Rotation.align_vectors(b, points, weights=weights)[0].as_matrix().T
about_origin = polarlib.align(points, b, weights=weights, translation=False).rotation
root = np.sqrt(weights)[:, None]
assert np.allclose(about_origin, scipys, atol=1e-12)
assert np.allclose(polarlib.procrustes(root * points, root * b, rotation=True), scipys, atol=1e-12)
print(f"angle to the true rotation: {angle(equal):.2f}°, with weights {angle(weighted):.2f}°")
assert 15 < angle(equal) < 18
assert angle(weighted) < 1.2
