"""Train eight more networks and keep gradient matrices that no rule of polarlib was made from.

``python analysis/gradients/others.py --out benchmarks/gradients.npz`` trains all of them, one
thread, about four minutes, and writes the matrices and, beside them, a TOML file that describes
each. benchmarks/nearest.py measures on them; the package does not ship them.

The data are glyphs that matplotlib's own fonts draw, turned and shifted at random, and the source
text that ``train.py`` reads. Repeating a run gives the same matrices up to the sums of another
torch or processor, as there.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import platform
import string
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from train import (
    CORPUS,
    Block,
    as_tensor,
    compress,
    describe,
    linear,
    muon_step,
    read_source,
    toml_table,
    windows,
    write,
)

SEED = 0
DECAY = 0.95  # of the momentum m <- DECAY m + g, that of Muon, whatever the optimizer
EARLY, MIDDLE, LATE = 10, 100, 600  # steps
CHARACTERS = string.ascii_letters + string.digits
FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral", "cmr10", "cmtt10")
SIDE = 16  # pixels


# -- data ------------------------------------------------------------------------------------


@functools.cache
def glyphs() -> torch.Tensor:
    """Return every character in every font, shape (fonts, characters, SIDE, SIDE), in [0, 1]."""
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import Image, ImageDraw, ImageFont

    drawn = np.zeros((len(FONTS), len(CHARACTERS), SIDE, SIDE), np.float32)
    for i, name in enumerate(FONTS):
        path = findfont(FontProperties(family=name), fallback_to_default=False)
        font = ImageFont.truetype(path, SIDE - 3)
        for k, character in enumerate(CHARACTERS):
            picture = Image.new("L", (SIDE, SIDE))
            place = (SIDE // 2, SIDE // 2)
            ImageDraw.Draw(picture).text(place, character, 255, font, anchor="mm")
            drawn[i, k] = np.asarray(picture, np.float32) / 255
    return torch.from_numpy(drawn)


def pictures(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return glyphs turned, scaled and shifted at random, with noise, and their characters."""
    font = torch.randint(len(FONTS), (batch,))
    character = torch.randint(len(CHARACTERS), (batch,))
    angle = 0.25 * torch.randn(batch)
    scale = 1 + 0.1 * torch.randn(batch)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    moves = torch.cat([turn * scale[:, None, None], 0.1 * torch.randn(batch, 2, 1)], 2)
    grid = F.affine_grid(moves, (batch, 1, SIDE, SIDE), align_corners=False)
    drawn = F.grid_sample(glyphs()[font, character][:, None], grid, align_corners=False)
    return drawn + 0.05 * torch.randn_like(drawn), character


@functools.cache
def source() -> torch.Tensor:
    """Return the source text as bytes."""
    return as_tensor(read_source(CORPUS))


def passages(batch: int, length: int) -> torch.Tensor:
    """Return pieces of `length` + 1 bytes."""
    text = source()
    return windows(text, torch.randint(len(text) - length, (batch,)), length)


# -- networks --------------------------------------------------------------------------------


class Convolutional(nn.Module):
    """Three convolutions of 3 x 3 pixels, each with stride 2, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(24, 48, 3, 2, 1, bias=False)
        self.conv3 = nn.Conv2d(48, 64, 3, 2, 1, bias=False)
        self.head = linear(64 * 4, len(CHARACTERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of pictures."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(conv(x))
        return self.head(x.flatten(1))


class Mixer(nn.Module):
    """16 patches of 4 x 4 pixels; two blocks that mix patches, then channels."""

    def __init__(self, width: int = 80, patches: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, 4, bias=False)
        self.token_in = nn.ModuleList(linear(patches, 64) for _ in range(2))
        self.token_out = nn.ModuleList(linear(64, patches) for _ in range(2))
        self.channel_in = nn.ModuleList(linear(width, 160) for _ in range(2))
        self.channel_out = nn.ModuleList(linear(160, width) for _ in range(2))
        self.head = linear(width, len(CHARACTERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of pictures."""
        x = self.embed(x).flatten(2).mT
        layers = zip(self.token_in, self.token_out, self.channel_in, self.channel_out, strict=True)
        for into, out, wide, narrow in layers:
            y = F.layer_norm(x, x.shape[-1:]).mT
            x = x + out(F.gelu(into(y))).mT
            x = x + narrow(F.gelu(wide(F.layer_norm(x, x.shape[-1:]))))
        return self.head(x.mean(1))


class Bytes(nn.Module):
    """Predict the next byte: an embedding, some body, a head. Subclasses give the body."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.head = linear(width, 128)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of every position."""
        raise NotImplementedError

    def loss(self, pieces: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of the next bytes, in nats."""
        pieces = pieces.clamp_max(127)
        x = self.body(self.embedding(pieces[:, :-1]))
        return F.cross_entropy(self.head(x).flatten(0, 1), pieces[:, 1:].flatten())


class Transformer(Bytes):
    """Blocks of ``train.py`` without positions, of another width and depth."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        """Return the residual stream, normalised."""
        for block in self.blocks:
            x = block(x)
        return F.rms_norm(x, x.shape[-1:])


class Recurrent(Bytes):
    """A gated recurrent unit."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.cell = nn.GRU(width, width, bias=False, batch_first=True)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        """Return the states."""
        return self.cell(x)[0]


def perceptron(*widths: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# -- training --------------------------------------------------------------------------------

Loss = Callable[[nn.Module], torch.Tensor]


def classified(model: nn.Module, batch: int = 32) -> torch.Tensor:
    """Return the cross-entropy of a batch of pictures."""
    drawn, character = pictures(batch)
    return F.cross_entropy(model(drawn), character)


def rebuilt(model: nn.Module, batch: int = 64) -> torch.Tensor:
    """Return the mean square error of pictures after an autoencoder."""
    drawn, _ = pictures(batch)
    return F.mse_loss(model(drawn), drawn.flatten(1))


def predicted(length: int, batch: int) -> Loss:
    """Return the loss of a byte model on passages."""
    return lambda model: model.loss(passages(batch, length))


@dataclass(frozen=True)
class Network:
    """One network: how it is built and trained, and which layers are kept."""

    story: str
    build: Callable[[], nn.Module]
    loss: Loss
    optimizer: str
    rate: float
    layers: dict[str, str]
    kind: str = "momentum"


NETWORKS = {
    "perceptron": Network(
        "pictures, 256-96-80-64-62, ReLU; SGD with momentum 0.9, batches of 32",
        lambda: perceptron(256, 96, 80, 64, len(CHARACTERS)),
        classified,
        "sgd",
        0.1,
        {"1": "hidden1", "3": "hidden2", "7": "head"},
    ),
    "autoencoder": Network(
        "pictures, 256-96-24-96-256, ReLU; Adam, batches of 64",
        lambda: perceptron(256, 96, 24, 96, 256),
        rebuilt,
        "adam",
        2e-3,
        {"1": "encode", "3": "narrow"},
    ),
    "convolutional": Network(
        "pictures, 3 convolutions of 3 x 3 with 24, 48 and 64 channels; Adam, batches of 32; "
        "kernels as out x (in h w)",
        Convolutional,
        classified,
        "adam",
        2e-3,
        {"conv2": "conv2", "conv3": "conv3"},
    ),
    "mixer": Network(
        "pictures in 16 patches, width 80, 2 blocks; Muon, batches of 32",
        Mixer,
        classified,
        "muon",
        0.01,
        {"token_in.1": "token_in", "channel_in.0": "channel_in"},
    ),
    "narrow": Network(
        "source text, transformer of width 64, 4 layers, 64 bytes; Adam, batches of 8",
        lambda: Transformer(64, 4, 4),
        predicted(64, 8),
        "adam",
        2e-3,
        {"blocks.0.attention_qkv": "qkv_first", "blocks.3.mlp_in": "mlp_in_last"},
        "gradient",
    ),
    "wide": Network(
        "source text, transformer of width 96, 1 layer, 96 bytes; Muon, batches of 8",
        lambda: Transformer(96, 2, 1),
        predicted(96, 8),
        "muon",
        0.02,
        {"blocks.0.attention_out": "attention_out", "blocks.0.mlp_out": "mlp_out"},
    ),
    "deep": Network(
        "source text, transformer of width 72, 6 layers, 64 bytes; SGD with momentum 0.9, "
        "batches of 8",
        lambda: Transformer(72, 3, 6),
        predicted(64, 8),
        "sgd",
        0.05,
        {"blocks.0.mlp_out": "mlp_out_first", "blocks.5.attention_qkv": "qkv_last"},
    ),
    "recurrent": Network(
        "source text, gated recurrent unit of width 88, 48 bytes; Adam, batches of 16",
        lambda: Recurrent(88),
        predicted(48, 16),
        "adam",
        3e-3,
        {"cell.weight_hh_l0": "recurrent", "head": "head"},
        "gradient",
    ),
}


def stepper(
    network: Network, model: nn.Module, momenta: dict[str, torch.Tensor]
) -> Callable[[], None]:
    """Return what moves the weights; Muon takes the hidden matrices, Adam the others then."""
    if network.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), network.rate, momentum=0.9).step
    if network.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), network.rate).step
    outer = ("embed", "head")
    hidden = {n: p for n, p in model.named_parameters() if not n.startswith(outer)}
    others = [p for n, p in model.named_parameters() if n not in hidden]
    adam = torch.optim.Adam(others, 3e-3)

    def step() -> None:
        adam.step()
        # muon_step adds the gradient to the momentum itself.
        own = {name: (momenta[name] - hidden[name].grad) / DECAY for name in hidden}
        muon_step(hidden, own, network.rate)

    return step


def trained(name: str, seed: int) -> Iterator[tuple[str, int, np.ndarray, list[float]]]:
    """Train a network; give each layer kept, the step, the matrix, and the losses so far."""
    torch.manual_seed(seed)
    network = NETWORKS[name]
    model = network.build()
    momenta = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    step, losses = stepper(network, model, momenta), []
    for k in range(1, LATE + 1):
        model.zero_grad()
        loss = network.loss(model)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for n, p in model.named_parameters():
                momenta[n].mul_(DECAY).add_(p.grad)
        if k in (EARLY, MIDDLE, LATE):
            parameters = dict(model.named_parameters())
            for layer, short in network.layers.items():
                full = layer if layer in parameters else f"{layer}.weight"
                gradient = network.kind == "gradient"
                kept = parameters[full].grad if gradient else momenta[full]
                yield short, k, kept.detach().flatten(1).numpy().copy(), losses
        step()


def all_of(seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Train every network; return the arrays to store and the text that explains them."""
    header = {
        "command": "python analysis/gradients/others.py --out benchmarks/gradients.npz"
        + (f" --seed {seed}" if seed else ""),
        "seed": seed,
        "threads": 1,
        "storage": "float16; multiply by scale for the original values, up to rounding",
        "pictures": f"{len(CHARACTERS)} characters in {', '.join(FONTS)}, as drawn from the fonts "
        "that matplotlib installs (DejaVu: Bitstream Vera licence; STIX: OFL; BaKoMa: its own)",
        "text": "17 modules of the Python standard library, PSF-2.0, as in train.py",
        "text_sha256": sha256(read_source(CORPUS)).hexdigest(),
        "momentum": f"m <- {DECAY} m + g",
    }
    text = "# Written by analysis/gradients/others.py together with the .npz file.\n"
    text += toml_table(header) + "\n[versions]\n" + toml_table(versions())
    arrays, networks, matrices = {}, "", ""
    for name, network in NETWORKS.items():
        kept = list(trained(name, seed))
        losses = kept[-1][-1]
        for layer, step, matrix, _ in kept:
            stored, scale = compress(matrix)
            arrays[key := f"{name}_{layer}_{step}"] = stored
            facts = {"name": key, "network": name, "layer": layer, "step": step}
            facts |= {"kind": network.kind, "shape": list(stored.shape), "scale": scale}
            matrices += "\n[[matrix]]\n" + toml_table(facts | describe(stored))
        mean = float(np.mean(losses[-50:]))
        learned = {"first_loss": losses[0], "last_loss": mean}
        sys.stderr.write(f"{name}: {losses[0]:.3f} to {mean:.3f}\n")
        networks += f"\n[network.{name}]\n" + toml_table({"training": network.story} | learned)
    return arrays, text + networks + matrices


def versions() -> dict[str, str]:
    """Return the versions that a repetition of the run would need."""
    import matplotlib

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
        "machine": platform.machine(),
    }


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, metavar="NPZ", required=True, help="write here")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write(options.out, *all_of(options.seed))


if __name__ == "__main__":
    main()
