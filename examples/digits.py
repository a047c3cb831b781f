"""The small task of muon_torch.py and muon_optax.py: images to classes, as a least squares problem.

Scikit-learn's digits where it is installed; otherwise the rows of a gradient that polarlib bundles,
ten columns of which are predicted from 64 others.
"""

import importlib.util
import sys

import numpy as np

from polarlib import files

INPUTS, OUTPUTS = 64, 10
WIDTH = 128  # of the hidden layers
SHAPES = ((WIDTH, INPUTS), (WIDTH, WIDTH), (OUTPUTS, WIDTH))


def task() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (samples, 64) with a root mean square of 1, and targets (samples, 10)."""
    if importlib.util.find_spec("sklearn"):
        from sklearn.datasets import load_digits

        found = load_digits()
        x, y = (found.data - 8) / 8, np.eye(OUTPUTS)[found.target]
    else:
        rows = files.sample_matrices()["transformer_mlp_in_late"]
        x, y = rows[:, :INPUTS], rows[:, INPUTS : INPUTS + OUTPUTS]
        y = y / np.sqrt(np.mean(y**2))
    return (x / np.sqrt(np.mean(x**2))).astype(np.float32), y.astype(np.float32)


def weights(seed: int = 0) -> list[np.ndarray]:
    """Return three layers, (fan-out, fan-in), before training."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m, n), np.float32) / np.float32(n**0.5) for m, n in SHAPES]


def loss(layers, x, y):
    """Return the mean squared error of the network, for arrays of any library."""
    for w in layers[:-1]:
        x = x @ w.T
        x = x * (x > 0)
    return ((x @ layers[-1].T - y) ** 2).mean()


def show(curves: dict[str, list[float]], every: int = 5) -> None:
    """Print loss curves in columns, and their largest difference."""
    lines = [" ".join(["step", *(f"{name:>22}" for name in curves)])]
    for i, losses in list(enumerate(zip(*curves.values(), strict=True)))[::every]:
        lines.append(" ".join([f"{i:4}", *(f"{loss:22.6f}" for loss in losses)]))
    ours, theirs = (np.array(losses) for losses in curves.values())
    apart = np.max(np.abs(ours - theirs) / theirs)
    sys.stdout.write("\n".join([*lines, f"largest difference: {apart:.1e} of the loss", ""]))
