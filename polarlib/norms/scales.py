"""Scales of an orthogonal update, as numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from polarlib.arrays.checks import MOST_ROWS, choice, count, items, number

# AdamW's updates have a root mean square of about 0.2 to 0.4: Liu and others, Muon is scalable for
# LLM training, arXiv 2502.16982, section 2.2.
MOONLIGHT = 0.2
MOST_LAYERS = 10**5
LARGEST_EXPONENT = 1e6

Rule = Literal["rms_to_rms", "jordan", "moonlight"]
Layer = Literal["input", "hidden", "output"]
Optimizer = Literal["sgd", "adam"]

# torch.compile traces a dict, and breaks the graph at a proxy of one.
_SCALES: dict[str, Callable[[int, int], float]] = {
    "rms_to_rms": lambda m, n: math.sqrt(m / n),
    "jordan": lambda m, n: math.sqrt(max(1.0, m / n)),
    "moonlight": lambda m, n: MOONLIGHT * math.sqrt(max(m, n)),
}
UPDATE_SCALES: Mapping[str, Callable[[int, int], float]] = MappingProxyType(_SCALES)


def update_scale(m: int, n: int, rule: Rule) -> float:
    """Return the factor of an orthogonal update ``U V^H`` for one layer.

    Parameters
    ----------
    m, n : int
        Fan-out (rows) and fan-in (columns).
    rule : {"rms_to_rms", "jordan", "moonlight"}
        - rms_to_rms: ``sqrt(m / n)``, length 1 in the norm of that name (Bernstein; Scion).
        - jordan: ``sqrt(max(1, m / n))`` (Muon).
        - moonlight: ``0.2 sqrt(max(m, n))``, a root mean square of 0.2 at full rank, as AdamW's.

        The names "spectral" and "spectral_norm" are different rules in two code bases, and are not
        accepted.

    Returns
    -------
    float
        The factor.

    Raises
    ------
    ValueError
        For an unknown rule, or a size that is not a positive integer.

    References
    ----------
    K. Jordan and others, Muon, 2024. J. Liu and others, Muon is scalable for LLM training, arXiv
    2502.16982, section 2.2 (moonlight). T. Pethick and others, Scion, arXiv 2502.07529
    (rms_to_rms).

    Examples
    --------
    >>> update_scale(4, 1, "rms_to_rms"), update_scale(1, 4, "jordan")
    (2.0, 1.0)
    """
    m, n = count("m", m, most=MOST_ROWS), count("n", n, most=MOST_ROWS)
    return _SCALES[choice("rule", rule, _SCALES)](m, n)


def spectral_radii(widths: Sequence[int]) -> tuple[float, ...]:
    """Return spectral norms of weights and updates for features of order 1, one per layer.

    Parameters
    ----------
    widths : sequence of int
        ``p_0, ..., p_L``: of the input, the hidden layers, the output.

    Returns
    -------
    tuple of float
        ``sqrt(p_l / p_(l-1))`` for L layers, first layer first, up to one constant.

    Raises
    ------
    ValueError
        For fewer than two widths, or one that is not a positive integer.

    References
    ----------
    G. Yang, J. Simon and J. Bernstein, A spectral condition for feature learning, arXiv 2310.17813,
    condition 1.

    Examples
    --------
    >>> spectral_radii([16, 64, 64, 4])
    (2.0, 1.0, 0.25)
    """
    given = items("widths", widths, "a list of the widths of two layers or more", 2, MOST_LAYERS)
    widths = [count("a width", p, most=MOST_ROWS) for p in given]
    return tuple(math.sqrt(b / a) for a, b in itertools.pairwise(widths))


class Parametrization(NamedTuple):
    """Exponents of the width: ``W = p^-a w``, variance of w ``p^-2b``, learning rate ``p^-c``.

    Attributes
    ----------
    a, b, c : float
        Exponents of the multiplier, of the standard deviation and of the learning rate.
    """

    a: float
    b: float
    c: float


# G. Yang and E. Hu, arXiv 2011.14522, table 1 (moved to a = 0), and G. Yang and others, Tensor
# Programs V, arXiv 2203.03466, table 3.
MUP = MappingProxyType(
    {
        "sgd": MappingProxyType(
            {
                "input": Parametrization(0, 0, -1),
                "hidden": Parametrization(0, 0.5, 0),
                "output": Parametrization(0, 1, 1),
            }
        ),
        "adam": MappingProxyType(
            {
                "input": Parametrization(0, 0, 0),
                "hidden": Parametrization(0, 0.5, 1),
                "output": Parametrization(0, 1, 1),
            }
        ),
    }
)


def mup(layer: Layer, optimizer: Optimizer = "sgd", *, a: float = 0.0) -> Parametrization:
    """Return the maximal update parametrization of a layer.

    Parameters
    ----------
    layer : {"input", "hidden", "output"}
        Only the hidden layer has width p on both sides; the input layer's is its output, the output
        layer's its input.
    optimizer : {"sgd", "adam"}, optional
        "adam" is every update whose size does not depend on that of the gradient.
    a : float, optional
        Exponent of the multiplier; b and c are those of the equivalent parametrization.

    Returns
    -------
    Parametrization
        Exponents a, b, c.

    Raises
    ------
    ValueError
        For an unknown layer or optimizer.

    References
    ----------
    G. Yang and E. Hu, arXiv 2011.14522, table 1. G. Yang and others, Tensor Programs V, arXiv
    2203.03466, table 3.

    Examples
    --------
    >>> mup("output"), mup("output", a=0.5)
    (Parametrization(a=0.0, b=1.0, c=1.0), Parametrization(a=0.5, b=0.5, c=0.0))
    """
    optimizer = choice("optimizer", optimizer, MUP)
    old = MUP[optimizer][choice("layer", layer, MUP[optimizer])]
    a = number("a", a, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    # w = p^(a' - a) w': SGD's step on w' shrinks twice, by the gradient and by the multiplier.
    twice = 2 if optimizer == "sgd" else 1
    moved = a - old.a
    return Parametrization(a, float(old.b - moved), float(old.c - twice * moved))
