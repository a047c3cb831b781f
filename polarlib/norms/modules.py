"""Norms of lists of arrays: the modular norm of a network.

A modular norm is ``max_l s_l ||W_l||_l``. Mass and sensitivity of modules determine the scales (T.
Large and others, Scalable optimization in the modular norm, arXiv 2405.14813):

    composition M1 after M0    mass m = m0 + m1, sensitivity c1 c0, scales of M0 times c1 m / m0,
                               scales of M1 times m / m1
    in parallel (M0, M1)       mass m = m0 + m1, sensitivity c0 + c1, scales of M_i times m / m_i

The update of a layer then changes the output in proportion to its mass, to first order.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from polarlib.arrays.checks import instance, items
from polarlib.arrays.entry import is_array
from polarlib.arrays.library import at_least_single, format_name
from polarlib.arrays.ops import ops_of
from polarlib.arrays.settings import looks, under_default_settings
from polarlib.norms.base import A, MatrixNorm, Norm, factor, times
from polarlib.norms.convolutions import MOST_LAYERS, Convolution

Array = Any


# -- modular norms ---------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Modular(Norm):
    """Norm ``max_l s_l ||W_l||_l`` of lists of arrays, or the sum over l, which is dual to it."""

    norms: tuple[Norm, ...]
    scales: tuple[float, ...]
    total: bool = False

    def __repr__(self) -> str:
        if self.total:
            return f"{self.dual()!r}.dual()"
        return f"modular({list(self.norms)!r}, {list(self.scales)!r})"

    def _layers(self, arrays: Any) -> list[tuple[Norm, float, Array]]:
        if is_array(arrays) or not isinstance(arrays, Sequence):
            raise TypeError(
                f"a modular norm takes a list of {len(self.norms)} arrays, got "
                f"{type(arrays).__name__}"
            )
        if len(arrays) != len(self.norms):
            raise ValueError(
                f"a modular norm of {len(self.norms)} layers needs as many arrays, got "
                f"{len(arrays)}"
            )
        return list(zip(self.norms, self.scales, arrays, strict=True))

    def _collect(self, values: list[Array], total: bool) -> Array:
        """Return the sum or the largest of the values of the layers."""
        return functools.reduce(operator.add if total else ops_of(values[0]).xp.maximum, values)

    def _values(self, x: Any) -> list[Array]:
        return [times(n(_wide(w)), s) for n, s, w in self._layers(x)]

    def _dual_values(self, g: Any) -> list[Array]:
        return [times(n.dual_norm(_wide(w)), 1 / s) for n, s, w in self._layers(g)]

    @looks
    @under_default_settings
    def __call__(self, x: Any) -> Array:
        return self._collect(self._values(x), self.total)

    @looks
    @under_default_settings
    def dual_norm(self, g: Any) -> Array:
        return self._collect(self._dual_values(g), not self.total)

    @looks
    @under_default_settings
    def lmo(self, g: A) -> A:
        ts = [times(n.lmo(w), 1 / s) for n, s, w in self._layers(g)]
        if not self.total:
            return cast(A, ts)
        values = self._dual_values(g)
        best = self._collect(values, False)
        taken, chosen = best < best, []  # False, in the shape and on the device of the values
        for v, t in zip(values, ts, strict=True):  # the first of the largest, and no other
            here = (v == best) & ~taken
            taken = taken | here
            chosen.append(ops_of(t).xp.where(_per_matrix(here, t), t, ops_of(t).xp.zeros_like(t)))
        return cast(A, chosen)

    @looks
    @under_default_settings
    def sharp(self, g: A) -> A:
        total = self.dual_norm(g)
        layers = cast(list[Array], self.lmo(g))
        return cast(A, [times(t, _per_matrix(total, t)) for t in layers])

    @looks
    def project(self, x: A) -> A:
        if self.total:
            raise NotImplementedError(f"{self!r} has no projection in closed form")
        # The ball is the product of the layers' balls.
        return cast(A, [(s * n).project(w) for n, s, w in self._layers(x)])

    def dual(self) -> Modular:
        norms = tuple(n.dual() for n in self.norms)
        return Modular(norms, tuple(1 / s for s in self.scales), not self.total)

    def __rmul__(self, s: float) -> Modular:
        s = factor(s)
        return Modular(self.norms, tuple(s * t for t in self.scales), self.total)

    @looks
    @under_default_settings
    def _gap(self, g: Any, t: Any) -> Array:
        duals, sizes = self._dual_values(g), self._values(t)
        dual, size = self._collect(duals, not self.total), self._collect(sizes, self.total)
        ops = ops_of(dual)
        a, b = ops.divisor(dual), ops.divisor(size)
        # The part of a layer in <G, T> is its (1 - gap) times both of its norms.
        shares = [
            (1 - n._gap(_wide(w), _wide(v))) * (d / a) * (r / b)
            for n, w, v, d, r in zip(self.norms, g, t, duals, sizes, strict=True)
        ]
        gap = 1 - self._collect(shares, True)
        return ops.xp.where(dual == 0, ops.xp.zeros_like(gap), gap)


def _wide(w: Any) -> Any:
    """Convert half precision to float32, so that values of layers are not rounded one by one."""
    if is_array(w) and format_name(w):
        return at_least_single(w, ops_of(w))
    return w


def _per_matrix(v: Array, t: Array) -> Array:
    """Return values of shape (...) with as many dimensions as an array."""
    return ops_of(t).xp.reshape(v, (*v.shape, *(1,) * (t.ndim - v.ndim)))


def modular(norms: Sequence[Norm], scales: Sequence[float] | None = None) -> Modular:
    """Return the modular norm ``max_l s_l ||W_l||_l`` of a list of arrays, one norm per layer.

    Parameters
    ----------
    norms : sequence of Norm
        Norms of matrices or kernels.
    scales : sequence of float, optional
        Positive; all 1 by default. :func:`compose` derives them from masses.

    Returns
    -------
    Norm
        Norm of lists of arrays. The value and the dual norm ``sum_l ||G_l||_dual / s_l`` are arrays
        of shape (...), in at least single precision. ``lmo`` returns the list of
        ``lmo_l(G_l) / s_l``, and ``sharp`` multiplies every layer by the dual norm of the list. The
        LMO of the dual changes one layer, the first with the largest dual norm.

    Raises
    ------
    TypeError, ValueError
        If `norms` has other entries, or there are not as many positive scales as norms. The norm
        itself raises them for another number of arrays than norms.

    Examples
    --------
    >>> import numpy as np
    >>> from polarlib.norms import frobenius, spectral
    >>> n = modular([spectral(), frobenius()], [1.0, 2.0])
    >>> w = [np.diag([3.0, 1.0]), np.array([[0.0, 1.0]])]
    >>> float(n(w)), float(n.dual_norm(w)), n.lmo(w)[1].tolist()
    (3.0, 4.5, [[0.0, 0.5]])
    """
    layers = items("norms", norms, "a list of at least one norm", most=MOST_LAYERS)
    for n in layers:
        instance("a norm of norms", n, MatrixNorm | Convolution, "a norm of single arrays")
    if scales is None:
        return Modular(tuple(layers), (1.0,) * len(layers))
    what = f"a list of {len(layers)} positive numbers, one for each norm"
    factors = items("scales", scales, what, len(layers), len(layers))
    return Modular(tuple(layers), tuple(factor(s, "a scale") for s in factors))


class Module(NamedTuple):
    """A part of a network, as modular norms describe it.

    Attributes
    ----------
    norms : tuple of Norm
        Norms of its weights, in order of application.
    scales : tuple of float
        Factors of the norms.
    mass : float
        Share of the change of the output that the part may cause.
    sensitivity : float
        Lipschitz constant from input to output.
    """

    norms: tuple[Norm, ...]
    scales: tuple[float, ...]
    mass: float
    sensitivity: float

    def norm(self) -> Modular:
        """Return the modular norm of the weights.

        Returns
        -------
        Norm
            :func:`modular` of `norms` and `scales`.
        """
        return modular(self.norms, self.scales)


def layer(norm: Norm, *, mass: float = 1.0, sensitivity: float = 1.0) -> Module:
    """Return a module with one array of weights.

    Parameters
    ----------
    norm : Norm
        Norm of the weights.
    mass, sensitivity : float, optional
        Positive.

    Returns
    -------
    Module
        With scale 1.

    Raises
    ------
    TypeError, ValueError
        As :func:`modular`, and for numbers that are not positive.

    Examples
    --------
    >>> from polarlib.norms import rms_to_rms
    >>> layer(rms_to_rms(4, 1), mass=2.0)
    Module(norms=(0.5 * spectral(),), scales=(1.0,), mass=2.0, sensitivity=1.0)
    """
    mass = factor(mass, "mass")
    sensitivity = factor(sensitivity, "sensitivity")
    return Module(modular([norm]).norms, (1.0,), mass, sensitivity)


def bond(sensitivity: float = 1.0) -> Module:
    """Return a module without weights, such as an activation.

    Parameters
    ----------
    sensitivity : float, optional
        Its Lipschitz constant, positive.

    Returns
    -------
    Module
        With mass 0.

    Raises
    ------
    TypeError, ValueError
        For a sensitivity that is not positive.

    Examples
    --------
    >>> bond(0.5)
    Module(norms=(), scales=(), mass=0.0, sensitivity=0.5)
    """
    return Module((), (), 0.0, factor(sensitivity, "sensitivity"))


def compose(*modules: Module) -> Module:
    """Return the composition of modules, the first applied first.

    Parameters
    ----------
    *modules : Module
        At least one.

    Returns
    -------
    Module
        Masses add, sensitivities multiply; the scales of each module are multiplied by total mass
        over its own, and by the sensitivities of all modules after it. Composition is associative.

    Raises
    ------
    TypeError, ValueError
        For an argument that is not a module, or no argument.

    Examples
    --------
    >>> from polarlib.norms import spectral
    >>> m = compose(layer(spectral()), bond(0.5), layer(spectral(), mass=3.0))
    >>> m.scales, m.mass, m.sensitivity
    ((2.0, 1.3333333333333333), 4.0, 0.5)
    """
    mass = _mass(modules)
    scales: tuple[float, ...] = ()
    after = 1.0
    # From the output, since a scale contains the sensitivities of all later modules. Modules of
    # mass 0 have no scales, so that nothing is divided by zero.
    for m in reversed(modules):
        scales = tuple(s * after * mass / m.mass for s in m.scales) + scales
        after *= m.sensitivity
    return Module(sum((m.norms for m in modules), ()), scales, mass, after)


def join(*modules: Module) -> Module:
    """Return modules in parallel, on the same input; their outputs are a tuple or added.

    Parameters
    ----------
    *modules : Module
        At least one.

    Returns
    -------
    Module
        Masses and sensitivities add; the scales of each are multiplied by total mass over its own.

    Raises
    ------
    TypeError, ValueError
        As :func:`compose`.

    Examples
    --------
    >>> from polarlib.norms import spectral
    >>> m = join(layer(spectral()), layer(spectral(), mass=3.0))
    >>> m.scales, m.mass, m.sensitivity
    ((4.0, 1.3333333333333333), 4.0, 2.0)
    """
    mass = _mass(modules)
    scales = tuple(s * mass / m.mass for m in modules for s in m.scales)
    norms: tuple[Norm, ...] = sum((m.norms for m in modules), ())
    return Module(norms, scales, mass, sum(m.sensitivity for m in modules))


def _mass(modules: Sequence[Module]) -> float:
    for m in modules:
        instance("a module", m, Module, "a Module, from layer() or bond()")
    if not modules:
        raise ValueError("at least one module is needed")
    return sum(m.mass for m in modules)
