"""A causal transformer of one block on characters, and how its features change in a first step."""

from __future__ import annotations

import functools
import math
import pydoc_data.topics
from typing import Any

import numpy as np

from polarlib import norms
from polarlib.norms import Norm
from polarlib.updates import uscg_step

BASE, HEAD, CONTEXT, SEQUENCES = 64, 32, 64, 8
FEATURES = ("attention", "up", "down", "scores")
RATES = {"Adam SP": 1e-4, "Adam muP": 1e-3, "Scion": 1e-2}


@functools.cache
def characters() -> tuple[str, np.ndarray]:
    """The alphabet of Python's help texts, and these texts as numbers of letters."""
    text = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    alphabet = "".join(sorted(set(text)))
    numbers = {letter: i for i, letter in enumerate(alphabet)}
    return alphabet, np.array([numbers[letter] for letter in text])


def hidden_shapes(n: int) -> dict[str, tuple[int, int]]:
    """Fan-out and fan-in of the hidden layers."""
    square = dict.fromkeys(("query", "key", "value", "mix"), (n, n))
    return square | {"up": (4 * n, n), "down": (n, 4 * n)}


def layer_norms(method: str, n: int) -> dict[str, Norm]:
    """The norms in which a first step of each layer has length 1."""
    shapes = hidden_shapes(n)
    if method == "Scion":
        found = {name: norms.rms_to_rms(*shape) for name, shape in shapes.items()}
        # Letters are rows of the embedding; each moves by a root mean square of 1.
        return found | {
            "letters": (1 / math.sqrt(n)) * norms.induced(2, math.inf),
            "scores": n * norms.lp(math.inf),
        }
    # Adam: the sign of the gradient, times the rate of the layer.
    sign: Norm = norms.lp(math.inf)
    later = norms.mup("hidden", "adam").c if method == "Adam muP" else 0.0
    last = norms.mup("output", "adam").c if method == "Adam muP" else 0.0
    found = dict.fromkeys(shapes, (n / BASE) ** later * sign)
    return found | {"letters": sign, "scores": (n / BASE) ** last * sign}


def weights(method: str, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Weights to start from: Gaussian of variance 1/fan-in, or of Scion's length 1."""
    import torch

    count = len(characters()[0])
    shapes = {"letters": (count, n)} | hidden_shapes(n) | {"scores": (count, n)}
    drawn = {name: torch.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    if method == "Scion":
        balls = layer_norms(method, n)
        return {name: balls[name].lmo(w) for name, w in drawn.items()}
    found = {
        name: w if name == "letters" else w / math.sqrt(w.shape[1]) for name, w in drawn.items()
    }
    if method == "Adam muP":  # the last layer is that of the base width there, and falls by n^-b
        b = norms.mup("output", "adam").b
        found["scores"] = found["scores"] * (n / BASE) ** (0.5 - b)
    return found


def features(ws: dict[str, Any], ids: Any) -> dict[str, Any]:
    """Features of the block and scores of the next letter, for ids of shape (sequences, length)."""
    import torch

    def rms(x: Any) -> Any:
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt()

    def heads(x: Any) -> Any:
        return x.unflatten(-1, (-1, HEAD)).transpose(-3, -2)

    x = ws["letters"][ids]
    normed = rms(x)
    q, k, v = (heads(normed @ ws[name].T) for name in ("query", "key", "value"))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    attention = attended.transpose(-3, -2).flatten(-2) @ ws["mix"].T
    x = x + attention
    up = rms(x) @ ws["up"].T
    down = math.sqrt(2) * torch.relu(up) @ ws["down"].T
    scores = rms(x + down) @ ws["scores"].T
    return dict(zip(FEATURES, (attention, up, down, scores), strict=True))


def changes(method: str, n: int, seed: int) -> list[float]:
    """Root mean squares of the changes of the features in one step, in units of the rate."""
    import torch

    _, text = characters()
    starts = np.random.default_rng(seed).choice(len(text) - CONTEXT, SEQUENCES, replace=False)
    windows = torch.asarray(text[starts[:, None] + np.arange(CONTEXT + 1)])
    ids, following = windows[:, :-1], windows[:, 1:]
    ws = weights(method, n, np.random.default_rng([seed, n]))
    for w in ws.values():
        w.requires_grad_()
    before = features(ws, ids)
    loss = torch.nn.functional.cross_entropy(before["scores"].flatten(0, 1), following.flatten())
    gradients = dict(zip(ws, torch.autograd.grad(loss, list(ws.values())), strict=True))
    rate, balls = RATES[method], layer_norms(method, n)
    with torch.no_grad():
        stepped = {
            name: uscg_step(w, gradients[name], balls[name].lmo, rate=rate)
            for name, w in ws.items()
        }
        after = features(stepped, ids)
        return [
            float((after[name] - before[name]).square().mean().sqrt()) / rate for name in FEATURES
        ]
