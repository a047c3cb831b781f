"""Train two small networks on real data and keep a few of their gradient matrices.

``--out FILE.npz`` trains both networks and writes the matrices to ``FILE.npz`` and
their description to ``FILE.toml``.  ``--describe`` and ``--plot FIGURE`` read such a pair
back (the bundled one, unless ``--data`` names another) and need no training.

A run is deterministic for a given seed, torch version and processor.  Another torch
version or processor may sum in another order; the rounding differences grow during
training, so entries then differ while shapes, exact zeros and the look of the spectra
stay.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from polarlib.files.whole import write_together, write_whole

SHIPPED = Path(__file__).resolve().parents[2] / "polarlib" / "data" / "gradients.npz"
COMMAND = "python analysis/gradients/train.py --out polarlib/data/gradients.npz"
SEED = 0
THREADS = 2  # fixed, because the number of threads changes the order of sums

# The largest stored magnitude lies in [2**9, 2**10).  Entries down to 1e-7 of the largest
# are then normal float16 numbers, and the Frobenius norms are still float16 numbers too.
STORED_EXPONENT = 10

# Modules of the standard library that carry no copyright notice of their own.
CORPUS = (
    *("calendar", "configparser", "contextlib", "dataclasses", "datetime", "difflib"),
    *("enum", "heapq", "pathlib", "random", "shutil", "statistics"),
    *("tempfile", "threading", "typing", "warnings", "zipfile"),
)
HELD_OUT = "weakref"

EARLY, LATE = 10, 1200  # steps, in both networks


@dataclass(frozen=True)
class Wanted:
    """One matrix to keep: where and when it is taken, and why it is worth keeping."""

    name: str
    network: str
    layer: str
    step: int
    kind: str
    description: str


WANTED = (
    Wanted(
        "transformer_embedding_early",
        "transformer",
        "embedding.weight",
        EARLY,
        "gradient",
        "Bytes that do not occur in the batch have rows of exact zeros, so a tall matrix has "
        "a rank below its width.",
    ),
    Wanted(
        "transformer_attention_qkv_early",
        "transformer",
        "blocks.0.attention_qkv.weight",
        EARLY,
        "momentum",
        "Soon after the start one direction holds nearly all of the Frobenius norm, and 127 "
        "small ones share the rest.",
    ),
    Wanted(
        "transformer_attention_out_early",
        "transformer",
        "blocks.1.attention_out.weight",
        EARLY,
        "momentum",
        "While attention is still close to a plain average, what it gathers hardly varies: a "
        "square matrix of full rank that is almost of rank one.",
    ),
    Wanted(
        "transformer_attention_out_late",
        "transformer",
        "blocks.1.attention_out.weight",
        LATE,
        "momentum",
        "The same parameter once attention has learned: many directions count, and only the "
        "last few singular values are very small.",
    ),
    Wanted(
        "transformer_mlp_in_late",
        "transformer",
        "blocks.0.mlp_in.weight",
        LATE,
        "momentum",
        "The easiest one: a tall, well-conditioned matrix with a slowly decaying spectrum.",
    ),
    Wanted(
        "transformer_mlp_out_early",
        "transformer",
        "blocks.1.mlp_out.weight",
        EARLY,
        "momentum",
        "A wide matrix: one dominant direction, then a slow decay.",
    ),
    Wanted(
        "transformer_head_late",
        "transformer",
        "head.weight",
        LATE,
        "gradient",
        "The softmax gives every byte a share, so no row is zero, yet rows of rare bytes are "
        "orders of magnitude smaller than rows of common ones.",
    ),
    Wanted(
        "digits_hidden1_early",
        "digits",
        "hidden1.weight",
        EARLY,
        "gradient",
        "A batch of 32 images bounds the rank by 32 before rounding, which adds a plateau of "
        "noise; idle units and blank pixels leave rows and columns of exact zeros.",
    ),
    Wanted(
        "digits_hidden2_late",
        "digits",
        "hidden2.weight",
        LATE,
        "momentum",
        "Once the network fits its data the spectrum falls by ten orders of magnitude, slowly "
        "and then steeply, and the columns of units idle for long have decayed to zeros.",
    ),
    Wanted(
        "digits_head_late",
        "digits",
        "head.weight",
        LATE,
        "gradient",
        "Softmax gradients sum to zero over the ten classes, so the rank is nine but for "
        "rounding: the last singular value is noise.",
    ),
)

DATA = {
    "digits": {
        "data": "Optical Recognition of Handwritten Digits (its test part: 1797 images of 8 x 8 "
        "pixels), as installed with scikit-learn",
        "licence": "CC BY 4.0",
        "attribution": "E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten "
        "Digits, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49",
        "training": "perceptron 64-128-128-10, ReLU, no biases; SGD with momentum 0.9, rate "
        "0.05, batches of 32 of the first 1500 images, tested on the other 297",
        "momentum": "m <- 0.9 m + g",
    },
    "transformer": {
        "data": "Source text of modules of the Python standard library, as installed with Python",
        "licence": "PSF-2.0",
        "attribution": "Python Software Foundation, https://docs.python.org/3/license.html",
        "training": "2 layers, width 128, 4 heads, 128 bytes of context, no biases; Muon for "
        "hidden matrices, Adam for the others, rates falling linearly to zero, batches of 16",
        "momentum": "m <- 0.95 m + g",
    },
}


# --------------------------------------------------------------------------------------
# Networks
# --------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer without bias, so that every parameter is a matrix."""
    return nn.Linear(inputs, outputs, bias=False)


class DigitsMLP(nn.Module):
    """64 pixels, two hidden layers of 128, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = linear(64, 128)
        self.hidden2 = linear(128, 128)
        self.head = linear(128, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of images."""
        return self.head(F.relu(self.hidden2(F.relu(self.hidden1(pixels)))))


class Block(nn.Module):
    """Causal attention followed by a perceptron, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_qkv = linear(width, 3 * width)
        self.attention_out = linear(width, width)
        self.mlp_in = linear(width, 4 * width)
        self.mlp_out = linear(4 * width, width)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Return what each position gathers from the positions before it."""
        batch, length, width = x.shape
        parts = self.attention_qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(gathered.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after this block."""
        x = x + self.attend(F.rms_norm(x, x.shape[-1:]))
        return x + self.mlp_out(F.gelu(self.mlp_in(F.rms_norm(x, x.shape[-1:]))))


class Transformer(nn.Module):
    """Predict the next byte; normalisation has no weights, so all parameters are matrices."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 2, length: int = 128):
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(256, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = linear(width, 256)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next byte at every position."""
        x = self.embedding(text) + self.position.weight
        for block in self.blocks:
            x = block(x)
        return self.head(F.rms_norm(x, x.shape[-1:]))


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------


def keep(
    kept: dict[str, np.ndarray],
    network: str,
    step: int,
    model: nn.Module,
    momenta: dict[str, torch.Tensor],
) -> None:
    """Copy the wanted matrices of this step into `kept`."""
    parameters = dict(model.named_parameters())
    for wanted in WANTED:
        if (wanted.network, wanted.step) == (network, step):
            if wanted.kind == "gradient":
                matrix = parameters[wanted.layer].grad
            else:
                matrix = momenta[wanted.layer]
            kept[wanted.name] = matrix.detach().numpy().copy()


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all 1797 images, scaled to [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def train_digits(kept: dict[str, np.ndarray], seed: int) -> dict[str, object]:
    """Train the digits network by SGD with momentum; return how well it learned."""
    torch.manual_seed(seed)
    pixels, classes = read_digits()
    train, test = slice(0, 1500), slice(1500, None)
    model = DigitsMLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(1, LATE + 1):
        batch = torch.randint(1500, (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[batch]), classes[batch]).backward()
        optimizer.step()
        momenta = {
            name: optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in model.named_parameters()
        }
        keep(kept, "digits", step, model, momenta)
    with torch.no_grad():
        logits = model(pixels)
    right = (logits.argmax(1) == classes).double()
    return {
        "steps": LATE,
        "train_loss": F.cross_entropy(logits[train], classes[train]).item(),
        "train_accuracy": right[train].mean().item(),
        "test_accuracy": right[test].mean().item(),
    }


def read_source(modules: Sequence[str]) -> bytes:
    """Return the source text of standard library modules, one after the other."""
    folder = Path(sysconfig.get_path("stdlib"))
    return b"".join((folder / f"{module}.py").read_bytes() for module in sorted(modules))


def as_tensor(text: bytes) -> torch.Tensor:
    """Return bytes as a vector of integers."""
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))


def windows(text: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Return the pieces of `length` + 1 bytes that begin at `starts`."""
    return text[starts[:, None] + torch.arange(length + 1)]


def byte_loss(model: Transformer, pieces: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy, in nats per byte, of predicting each next byte."""
    logits = model(pieces[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())


def polar_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal polar factor by way of the smaller Gram matrix.

    An eigendecomposition, rather than an iteration, keeps the training independent of the
    iterations that the matrices are meant to test.  Directions below 1e-5 of the largest
    are damped, since they are rounding noise.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return polar_factor(matrix.mT).mT
    wide = matrix.double()
    values, vectors = torch.linalg.eigh(wide.mT @ wide)
    inverse_root = (values.clamp_min(0) + 1e-10 * values[-1]).rsqrt()
    return (wide @ (vectors * inverse_root) @ vectors.mT).to(matrix.dtype)


@torch.no_grad()
def muon_step(
    parameters: dict[str, nn.Parameter], momenta: dict[str, torch.Tensor], rate: float
) -> None:
    """Move each matrix along the polar factor of its momentum."""
    for name, parameter in parameters.items():
        momenta[name].mul_(0.95).add_(parameter.grad)
        rows, columns = parameter.shape
        parameter -= rate * math.sqrt(max(1, rows / columns)) * polar_factor(momenta[name])


def train_transformer(kept: dict[str, np.ndarray], seed: int) -> dict[str, object]:
    """Train the transformer, hidden matrices by Muon and the others by Adam."""
    torch.manual_seed(seed)
    text, held_out = as_tensor(read_source(CORPUS)), as_tensor(read_source([HELD_OUT]))
    model = Transformer()
    hidden = {name: p for name, p in model.named_parameters() if name.startswith("blocks")}
    momenta = {name: torch.zeros_like(parameter) for name, parameter in hidden.items()}
    others = [p for name, p in model.named_parameters() if name not in hidden]
    adam = torch.optim.Adam(others, lr=3e-3)
    losses = []
    for step in range(1, LATE + 1):
        left = 1 - (step - 1) / LATE  # rates fall linearly to zero
        adam.param_groups[0]["lr"] = 3e-3 * left
        starts = torch.randint(len(text) - model.length, (16,))
        model.zero_grad()
        loss = byte_loss(model, windows(text, starts, model.length))
        loss.backward()
        adam.step()
        muon_step(hidden, momenta, 0.02 * left)
        losses.append(loss.item())
        keep(kept, "transformer", step, model, momenta)
    starts = torch.arange(0, len(held_out) - model.length - 1, model.length)
    with torch.no_grad():
        test_loss = byte_loss(model, windows(held_out, starts, model.length)).item()
    return {
        "modules": list(CORPUS),
        "held_out_module": HELD_OUT,
        "corpus_bytes": len(text),
        "corpus_sha256": sha256(read_source(CORPUS)).hexdigest(),
        "steps": LATE,
        "first_loss": losses[0],
        "train_loss": float(np.mean(losses[-50:])),
        "test_loss": test_loss,
    }


# --------------------------------------------------------------------------------------
# What a matrix looks like
# --------------------------------------------------------------------------------------


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return the singular values in descending order, computed in float64."""
    return np.linalg.svd(matrix.astype(np.float64), compute_uv=False)


def numerical_rank(values: np.ndarray, shape: tuple[int, int], dtype: type) -> int:
    """Count the singular values above the rounding noise of `dtype`."""
    return int(np.sum(values > max(shape) * np.finfo(dtype).eps * values[0]))


def describe(matrix: np.ndarray) -> dict[str, float]:
    """Return the numbers that tell how hard a matrix is to orthogonalise.

    `condition` is taken over the nonzero singular values, those that `rank` counts.
    `effective_rank` is the exponential of the entropy of the normalised singular values.
    """
    values = singular_values(matrix)
    rank = numerical_rank(values, matrix.shape, np.float64)
    shares = values[:rank] / values[:rank].sum()
    return {
        "rank": rank,
        "condition": float(values[0] / values[rank - 1]),
        "effective_rank": float(np.exp(-np.sum(shares * np.log(shares)))),
        "largest_over_frobenius": float(values[0] / np.linalg.norm(values)),
        "zero_rows": int(np.sum(~matrix.any(axis=1))),
        "zero_columns": int(np.sum(~matrix.any(axis=0))),
    }


# --------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------


def compress(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a float16 matrix and the power of two that it must be multiplied by."""
    exponent = math.frexp(float(np.abs(matrix).max()))[1]
    scale = math.ldexp(1.0, exponent - STORED_EXPONENT)
    return (matrix / scale).astype(np.float16), scale


def toml_table(values: dict[str, object]) -> str:
    """Return key = value lines; JSON and TOML write these plain values alike."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def versions() -> dict[str, str]:
    """Return the versions that a repetition of the run would need."""
    import sklearn

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit_learn": sklearn.__version__,
        "machine": platform.machine(),
    }


def story(
    kept: dict[str, np.ndarray], results: dict[str, dict[str, object]], seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays to store and the text of the TOML file that explains them."""
    arrays, text = {}, "# Written by analysis/gradients/train.py together with the .npz file.\n"
    header = {
        "command": COMMAND if seed == SEED else f"{COMMAND} --seed {seed}",
        "seed": seed,
        "threads": THREADS,
        "storage": "float16; multiply by scale for the original values, up to rounding",
    }
    text += toml_table(header) + "\n[versions]\n" + toml_table(versions())
    for network, result in results.items():
        text += f"\n[network.{network}]\n" + toml_table(DATA[network] | result)
    for wanted in WANTED:
        original = kept[wanted.name]
        stored, scale = compress(original)
        arrays[wanted.name] = stored
        facts = {
            "shape": list(stored.shape),
            "scale": scale,
            "rank_before_rounding": numerical_rank(
                singular_values(original), original.shape, np.float32
            ),
        }
        text += "\n[[matrix]]\n" + toml_table(asdict(wanted) | facts | describe(stored))
    return arrays, text


def write(out: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    """Write both files or neither."""
    write_together(
        {
            out: lambda file: np.savez_compressed(file, **arrays),
            out.with_suffix(".toml"): lambda file: file.write(text.encode()),
        }
    )


def read(data: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, object]]]:
    """Return the stored matrices and what the TOML file says of each, by name."""
    with np.load(data) as file:
        arrays = {name: file[name] for name in file.files}
    facts = tomllib.loads(data.with_suffix(".toml").read_text(encoding="utf-8"))["matrix"]
    return arrays, {fact["name"]: fact for fact in facts}


# --------------------------------------------------------------------------------------
# Table and figure
# --------------------------------------------------------------------------------------

HEADINGS = (
    "name",
    "kind",
    "step",
    "shape",
    "rank before rounding",
    "rank",
    "condition",
    "effective rank",
    "sigma_max / Frobenius",
)


def rows(data: Path) -> list[list[str]]:
    """Return one row of text for each stored matrix, computed from the stored values."""
    arrays, facts = read(data)
    lines = []
    for name, matrix in arrays.items():
        fact, seen = facts[name], describe(matrix)
        lines.append(
            [
                name,
                fact["kind"],
                str(fact["step"]),
                "{} x {}".format(*matrix.shape),
                str(fact["rank_before_rounding"]),
                str(seen["rank"]),
                f"{seen['condition']:.1e}",
                f"{seen['effective_rank']:.1f}",
                f"{seen['largest_over_frobenius']:.3f}",
            ]
        )
    return lines


def markdown(data: Path) -> str:
    """Return the rows as a markdown table, padded so that it also reads well as text."""
    lines = [list(HEADINGS)] + [[f"`{row[0]}`", *row[1:]] for row in rows(data)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # The first two columns are words, aligned left; the others numbers, aligned right.
    ruler = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [
        [
            c.ljust(w) if i < 2 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    padded.insert(1, ruler)
    return "".join("| " + " | ".join(line) + " |\n" for line in padded)


def summary(out: Path, results: dict[str, dict[str, object]]) -> str:
    """Return what was written and how well the networks learned."""
    text = markdown(out) + f"{out.name}: {out.stat().st_size / 1000:.0f} kB\n"
    for network, result in results.items():
        numbers = (f"{key} {v:.4g}" for key, v in result.items() if isinstance(v, float))
        text += f"{network}: " + ", ".join(numbers) + "\n"
    return text


# Okabe-Ito colours without yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def plot(data: Path, figure: Path) -> None:
    """Draw the nonzero singular values of every stored matrix, relative to the largest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    arrays, facts = read(data)
    drawing, axes = plt.subplots(1, 2, figsize=(10, 5.2), sharey=True, layout="constrained")
    for axis, network in zip(axes, DATA, strict=True):
        names = [name for name in arrays if facts[name]["network"] == network]
        # One colour a layer, so that early and late states of it can be compared.
        layers = list(dict.fromkeys(facts[name]["layer"] for name in names))
        for name in names:
            values = singular_values(arrays[name])[: facts[name]["rank"]]
            axis.loglog(
                np.arange(1, len(values) + 1),
                values / values[0],
                color=COLOURS[layers.index(facts[name]["layer"])],
                linestyle="--" if facts[name]["step"] == EARLY else "-",
                label="{} ({} x {})".format(name.removeprefix(network + "_"), *arrays[name].shape),
            )
        axis.set(title=network, xlabel="index of singular value")
        axis.grid(color="0.9")
        axis.legend(loc="lower left", fontsize=9)
    axes[0].set_ylabel("singular value / largest")
    drawing.suptitle(f"Nonzero singular values; dashed: step {EARLY}, solid: step {LATE}")
    save = functools.partial(drawing.savefig, format=figure.suffix.removeprefix("."), dpi=110)
    write_whole(figure, save)
    plt.close(drawing)


# --------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------


def train(out: Path, seed: int) -> None:
    """Train both networks, write what is kept, and show a summary."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    kept: dict[str, np.ndarray] = {}
    results = {
        "digits": train_digits(kept, seed),
        "transformer": train_transformer(kept, seed),
    }
    write(out, *story(kept, results, seed))
    sys.stdout.write(summary(out, results))


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, metavar="NPZ", help="train, then write here")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the training")
    parser.add_argument("--data", type=Path, default=SHIPPED, help="file to describe or plot")
    parser.add_argument("--describe", action="store_true", help="write a markdown table")
    parser.add_argument("--plot", type=Path, metavar="FIGURE", help="write a .png or .pdf")
    options = parser.parse_args()
    if not (options.out or options.describe or options.plot):
        parser.error("nothing to do: give --out, --describe or --plot")
    if options.out:
        train(options.out, options.seed)
    if options.describe:
        sys.stdout.write(markdown(options.data))
    if options.plot:
        plot(options.data, options.plot)


if __name__ == "__main__":
    main()
