"""The page docs/evidence/approximations.md, from the data that approximations.py measures."""

from __future__ import annotations

import statistics
from typing import Any

from common import reflow, table

Data = dict[str, Any]


def summary_table(data: Data) -> str:
    """Return the errors over all matrices, one line per variant."""
    rows = []
    for name, sent in data["bytes"].items():
        values = [row[name] for row in data["gradients"].values() if name in row]
        alignment, gap, length = zip(*values, strict=True)
        rows.append(
            [
                name,
                str(len(values)),
                f"{statistics.median(alignment):.2f} ({min(alignment):.2f})",
                f"{statistics.median(gap):.2f} ({max(gap):.2f})",
                f"{statistics.median(length):.2f} ({max(length):.2f})",
                f"{sent / 1e6:.3g}",
            ]
        )
    head = ["approximation", "matrices", "alignment", "dual gap", "spectral norm", "MB"]
    return table(head, rows)


SHOWN = {
    "8 blocks, longer side": "8 blocks along the longer side",
    "8 blocks, shorter side": "8 blocks along the shorter side",
    "Dion, n/8": "Dion, rank n/8",
    "`range_lmo`, n/8": "range_lmo, rank n/8",
    "Dion, n/4": "Dion, rank n/4",
    "`range_lmo`, n/4": "range_lmo, rank n/4",
}


def gradient_table(data: Data) -> str:
    """Return the dual gaps of the bundled gradients."""
    rows = []
    for name, rank in data["effective rank"].items():
        row = data["gradients"][name]
        gaps = [f"{row[v][1]:.2f}" if v in row else "–" for v in SHOWN.values()]
        rows.append([f"`{name}`", f"{rank:.3g}", *gaps])
    return table(["gradient", "effective rank", *SHOWN], rows)


def feedback_table(data: Data) -> str:
    """Return the errors of sums of updates, with and without error feedback."""
    rows = [
        [rank, *(f"{errors[i]:.3f}" for i in (0, 1) for errors in both)]
        for rank, both in data["feedback"].items()
    ]
    head = ["rank", "sum of P Rᵀ, with", "without", "sum of updates, with", "without"]
    return table(head, rows)


def loss_table(data: Data) -> str:
    """Return the losses after training, by rate."""
    rows = [
        [name, *(f"**{x:.3f}**" if x == min(values) else f"{x:.3f}" for x in values)]
        for name, values in data["losses"].items()
    ]
    return table(["direction", *(f"rate {r:g}" for r in data["settings"]["rates"])], rows)


def column(data: Data, name: str, place: int) -> list[float]:
    """Return one error of a variant, over all matrices that it takes."""
    return [row[name][place] for row in data["gradients"].values() if name in row]


def summary(data: Data) -> str:
    """Return the sentences on top of the page."""
    gaps = {name: statistics.median(column(data, name, 1)) for name in data["bytes"]}
    long, short = (f"8 blocks along the {side} side" for side in ("longer", "shorter"))
    dion_name, lmo_name = "Dion, rank n/4", "range_lmo, rank n/4"
    (kept, lost), losses = data["feedback"]["8"], data["losses"]
    settings = data["settings"]
    best = {name: min(values) for name, values in losses.items()}
    return (
        f"On {len(data['gradients'])} gradients, the median dual gap of {long} is "
        f"{gaps[long]:.2f}, and {gaps[short]:.2f} along the shorter side "
        f"({len(column(data, short, 1))} of them). Blocks send nothing. "
        f"Dion's update of rank n/4 has {gaps[dion_name]:.2f}, and `range_lmo`, which sends as "
        f"many bytes, {gaps[lmo_name]:.2f}. Error feedback reduces the error of a sum of "
        f"{settings['length']} updates of rank 8 of {settings['width']} from {lost[0]:.2f} to "
        f"{kept[0]:.2f}. In {settings['steps']} steps of "
        f"training, the best losses are {best['exact']:.3f} (exact), {best['8 blocks']:.3f} "
        f"(8 blocks), {best['block-periodic, P = 5, 8 blocks']:.3f} (block-periodic) and "
        f"{best['Dion, rank n/8']:.3f} (Dion of rank n/8)."
    )


def page(data: Data) -> str:
    """Return the page."""
    gather = data["bytes"]["exact, matrix gathered"]
    settings = data["settings"]
    return reflow(
        TEXT.format_map(
            settings
            | {
                "shape": " × ".join(map(str, settings["shape"])),
                "summary": summary(data),
                "errors": summary_table(data),
                "gradients": gradient_table(data),
                "feedback": feedback_table(data),
                "losses": loss_table(data),
                "count": len(data["gradients"]),
                "bundled": len(data["effective rank"]),
                **{key: f"{value / 1e6:.3g}" for key, value in data["exact bytes"].items()},
                "sums": f"{2 * gather / 1e6:.3g}",
                "bound": f"{1 - settings['devices'] ** -0.5:.3f}",
                "largest": f"{max(column(data, SHOWN['8 blocks, longer side'], 1)):.3f}",
            }
        )
    )


TEXT = """# Approximations of the spectral LMO that send less

{summary}

Made by `python benchmarks/approximations.py`, which also measures
[data/approximations.json](../data/approximations.json). `norms.per_block`, `norms.block_periodic`
(MuonBP, arXiv 2510.16981) and `updates.dion` (Dion, arXiv 2504.05295) are described in
[Optimizers](../guide/optimizers.md#over-several-devices).

## Errors

T is the approximation at a gradient G, U the exact LMO (the polar factor of G, a partial isometry
where G is rank-deficient).

- Alignment: ⟨T, U⟩ / (‖T‖_F ‖U‖_F), 1 for a multiple of U.
- Dual gap: 1 − ⟨G, T⟩ / (‖T‖₂ ‖G‖_*), `norms.duality_gap(norms.spectral(), g, t)`: the relative
  loss of the linear decrease by a step of the same spectral norm.
- MB: what one of {devices} devices sends in one step for one matrix {shape} in bfloat16, by
  `polarlib.communication`. Blocks and periods send it in addition to what AdamW sends. Dion's two
  sums of m × k and n × k matrices are sent in place of the sum of gradients over data-parallel
  devices, {sums} MB.

Median, in parentheses the worst (of the spectral norm the largest), over {count} gradients and
momenta of ten networks: the {bundled} bundled ones and those of benchmarks/gradients.npz. The
number of matrices is smaller where a side is not divisible. n is the smaller side. The basis of
low rank is warm: {warm} power steps on the same matrix from a Gaussian one.

{errors}

The spectral norm of r × c blocks is at most √(r c), which blocks with a direction in common reach,
and nearly that for most of these gradients. Their dual gap is at most 1 − 1/√(r c), {bound} for 8
blocks; the largest here is {largest}. Values of block-periodic LMOs are means over the steps of a
period for one matrix.

The exact LMO sends {gather} MB if each device gathers the matrix. It sends {rows} MB by sums of
Gram matrices (`orthogonalize` of a sharded matrix; [which layout when](communication.md#decision)
has the ratio of the sides from which that is less), and {all_to_all} MB if {devices} matrices of
one shape are exchanged, so that each device has one of them whole. With {devices} matrices of one
shape, a block-periodic update saves bytes only if it sends less than the exchange.

An update of rank k has at most the alignment √(k/r) with the exact one of rank r ≥ k. The LMO in
the range of Dion's update is `range_lmo(b, p)`, with p of `power_step`. It is P polar(R)ᴴ with
R = Bᴴ P, which every device has, and sends nothing more than Dion. (Orth-Dion, arXiv 2605.16341,
has the factor of a QR in the place of polar(R).)

## Dual gaps of the bundled gradients

{gradients}

## Error feedback

The gradients of the middle layer, {width} × {width}, in {length} steps of a network of three
layers that learns digits (batches of {batch}) by exact LMOs at the rate {slow:g}, given to
`updates.dion` with μ = {mu:g}. Without feedback, M ← μ (M + G): the part of B that P Rᵀ does not
contain is forgotten as fast as that which it contains. *Sum of P Rᵀ*: its distance from that at
full rank, where P Rᵀ = B, relative to that. *Sum of updates*: one minus its alignment with the sum
of exact LMOs of the momentum.

{feedback}

## Losses

Mean cross entropy of the same network on all digits after {steps} steps of batches of {batch},
median of {seeds} seeds; the rate falls linearly to zero; all three layers take the direction of
the table, times `update_scale(m, n, "jordan")`. Blocks are {devices} of rows (of columns in the
last layer, which has 10 rows), with the `factor` of updates of equal root mean squares. The least
loss of each line is bold.

{losses}

One small network and a few steps: the table shows that the directions train, at which rates, and
not which is best for another network. Error feedback makes no large difference here.
"""
