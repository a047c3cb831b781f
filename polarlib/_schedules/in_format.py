"""Certificates that include the rounding of a number format, in ball arithmetic.

**The scalar model.** Every rounding changes a matrix by a factor of 1 + e along its singular
vectors, ``|e| <= share * u``, to first order. With E_j the derivatives of a step by its roundings
(:mod:`polarlib._schedules.rounding`) an interval I becomes the hull of
``p(x) -+ share u sum_j |E_j(x)|`` over x in I. The E_j are polynomials. Between their real zeros,
which are isolated exactly, the sum is a polynomial too, and its extremes are enclosed as those of
steps are.

**Matrices.** All bounds hold for every real m x n matrix X, m >= n, whose entries are of the format
and whose singular values are in the interval. In the plain form a step computes G, Z and X':

    G ~ X^T X,    Z ~ c_1 G + c_2 G^2 + ...,    X' ~ c_0 X + X Z.

- A matrix A of rank r has ``||A||_F <= sqrt(r) ||A||_2``. Rounding A to the format, entry by entry,
  moves it in the Frobenius norm by at most ``u ||A||_F + t``, t for numbers below the normal ones.
- A sum of k products in any order is off by at most ``k v |A| |B|``, v = 2^-23 in single precision
  (twice its unit roundoff, since ``k w / (1 - k w) <= 2 k w`` for k w <= 1/2; N. J. Higham,
  Accuracy and Stability of Numerical Algorithms, 2002, (3.13)), and
  ``|| |A| |B| ||_F <= ||A||_F ||B||_F``. A scalar factor and an addend add 2 to k.
- So errors are followed in the Frobenius norm through the products of the engine. Every matrix but
  X is, without rounding, a polynomial in X^T X: its norm is enclosed on the interval.
- With P = c_0 I + Z for the exact Z, d the error of the computed one, and F the error of the last
  product, the singular values of the computed X' are within ``||F||`` of those of X (P + D),
  ``||D|| <= d`` (Weyl's inequality; R. A. Horn and C. R. Johnson, Topics in Matrix Analysis, 1991,
  3.3.16). These are within ``||X|| d`` of the p(sigma) for the same reason, and, since
  X (P + D) = X P (I + P^-1 D), within a factor of ``1 -+ d ||P^-1||`` (ibid.): the better bound is
  taken.

Complex entries, formats that flush small numbers to zero, and the normalisation are not covered.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flint import arb, fmpq, fmpq_poly

from polarlib._schedules import enclosures
from polarlib._schedules.enclosures import extremes, image, real_roots
from polarlib._schedules.products import even_products
from polarlib._schedules.rounding import largest_input, rounding_errors
from polarlib.arrays.formats import Format, format_of
from polarlib.arrays.numpy_ops import CANCELS

Step = Sequence[float]
# Function of a step and an interval that encloses the image with rounding.
Landing = Callable[[Step, arb, arb], tuple[arb, arb]]


class NotPositiveError(ArithmeticError):
    """Reports that the lower bound after a step is not positive, perhaps for lack of bits."""

    def __init__(self, step: int, bound: arb) -> None:
        super().__init__(step, bound)
        self.step, self.bound = step, bound


def chain(steps: Sequence[Step], lower: arb, upper: arb, land: Landing) -> tuple[arb, arb]:
    """Enclose the interval after each step, by the function `land`.

    Raises
    ------
    NotPositiveError
        If a lower bound is not above 0.
    """
    lo, hi = lower, upper
    for k, step in enumerate(steps, 1):
        lo, hi = land(step, lo, hi)
        if not lo > 0 or not hi.is_finite():
            raise NotPositiveError(k, lo)
    return lo, hi


# -- the scalar model ------------------------------------------------------------------------


def in_scalar_model(
    steps: Sequence[Step],
    lower: float,
    upper: float,
    divisor: float,
    precision: Format,
    share: float,
) -> tuple[arb, arb]:
    """Enclose the image of ``[lower, upper] / divisor`` with roundings by the scalar model.

    Examples
    --------
    >>> f = format_of("bfloat16")
    >>> lo, hi = in_scalar_model([(1.5, -0.5)], 1.0, 1.0, 1.0, f, 0.0)
    >>> enclosures.floats(hi), bool(0.99 < lo < 1)  # the input may exceed 1 by one rounding
    ((1.0, 1.0), True)
    """
    weight = _exactly(share) * _exactly(precision.unit_roundoff)
    most = arb(upper) * largest_input(precision) / divisor
    return chain(
        steps, arb(lower) / divisor, most, functools.partial(scalar_landing, weight=weight)
    )


def _exactly(x: float) -> fmpq:
    return fmpq(*x.as_integer_ratio())


@functools.lru_cache(maxsize=256)
def _parts(step: tuple[float, ...]) -> tuple[list[fmpq], list[list[fmpq]]]:
    """Return the coefficients of a step and of its derivatives by the roundings, in odd powers."""
    p, errors = rounding_errors([_exactly(c) for c in step], fmpq_poly([0, 1]))
    return p.coeffs()[1::2], [e.coeffs()[1::2] for e in errors if e.degree() > 0]


def _value(odd: Sequence[fmpq], x: arb) -> arb:
    y, value = x * x, arb(0)
    for c in reversed(odd):
        value = value * y + arb(c)
    return x * value


def scalar_landing(step: Step, lower: arb, upper: arb, *, weight: fmpq) -> tuple[arb, arb]:
    """Enclose the least ``p - w r`` and the largest ``p + w r`` on [lower, upper], 0 < lower.

    Examples
    --------
    >>> ends = scalar_landing((1.5, -0.5), arb(1), arb(1), weight=fmpq(1, 8))
    >>> [enclosures.floats(end) for end in ends]
    [(0.75, 0.75), (1.25, 1.25)]
    """
    p, errors = _parts(tuple(step))
    apart = _apart([t for e in errors for t in real_roots(e, 2)], lower, upper)
    lows, highs = [], []
    # Where zeros are, or may be: the whole expression, on a narrow ball.
    for a, b in apart:
        x = a.union(b)
        r = arb(weight) * sum((abs(_value(e, x)) for e in errors), arb(0))
        lows.append(_value(p, x) - r)
        highs.append(_value(p, x) + r)
    # Between them every E_j has one sign. With these signs the polynomial is within the bound
    # everywhere, so that its extrema on the whole interval may be used.
    for (_, a), (b, _) in itertools.pairwise(apart):
        values = [_value(e, (a + b) / 2) for e in errors]
        if any(v.contains(0) for v in values):  # too few bits: the caller uses more
            return arb("nan"), arb("nan")
        signs = [1 if v > 0 else -1 for v in values]
        for side, found in ((-1, lows), (1, highs)):
            q = _combined(p, errors, [side * weight * s for s in signs])
            slope = [(2 * i + 1) * c for i, c in enumerate(q)]
            turns = real_roots(slope, 2)
            found.append(extremes(functools.partial(_value, q), turns, lower, upper)[side > 0])
    return functools.reduce(arb.min, lows), functools.reduce(arb.max, highs)


def _combined(p: list[fmpq], errors: list[list[fmpq]], weights: list[fmpq]) -> list[fmpq]:
    total = fmpq_poly(p)
    for e, w in zip(errors, weights, strict=True):
        total += fmpq_poly(e) * w
    return list(total.coeffs())


def _apart(zeros: list[arb], lower: arb, upper: arb) -> list[tuple[arb, arb]]:
    """Return ends of disjoint pieces with the ends of an interval and all zeros, ascending."""
    inside = [t for t in zeros if not (t < lower or t > upper)]
    balls = [(t.lower(), t.upper()) for t in (lower, *inside, upper)]
    balls.sort(key=lambda ends: enclosures.floats(ends[0])[0])
    pieces = balls[:1]
    for a, b in balls[1:]:
        if a > pieces[-1][1]:
            pieces.append((a, b))
        else:
            pieces[-1] = (pieces[-1][0].min(a), pieces[-1][1].max(b))
    return pieces


# -- matrices --------------------------------------------------------------------------------


class _Matrix(NamedTuple):
    """A computed n x n matrix: without rounding ``sum c_i G^(1 + i)``; its 2-norm, and its error.

    The norm is that without rounding, and the error a bound in the Frobenius norm.
    """

    terms: tuple[float, ...]
    norm: arb
    error: arb

    @property
    def size(self) -> arb:
        """Bound of the 2-norm as computed."""
        return self.norm + self.error


class MatrixModel:
    """Error bounds of the plain form for m x n matrices in a format, m >= n.

    Examples
    --------
    >>> model = MatrixModel(format_of("float32"), 64, 16)
    >>> lo, hi = model.landing((1.5, -0.5), arb(0.5), arb(1))
    >>> bool(0.686 < lo < 0.6875), bool(1 < hi < 1.001)
    (True, True)
    """

    def __init__(self, precision: Format, m: int, n: int) -> None:
        carrier = format_of(precision.carrier)
        self.m, self.n = m, n
        self.u = arb(precision.unit_roundoff)
        self.v = arb(carrier.epsilon)
        self.root = arb(n).sqrt()
        # tf32 rounds the operands of products, not their results.
        self.reads = precision.name == "tf32"
        self.wide = precision is carrier
        # Half the distance of numbers below the normal ones; of 8 bits relative to the largest
        # entry, which is scaled to at least a quarter of the largest number's power of two.
        least = arb(precision.smallest_normal) * precision.epsilon / 2
        self.scaled = precision.scaled
        self.least = least / 2.0 ** (math.frexp(precision.largest)[1] - 2) if self.scaled else least
        self.tiniest = arb(carrier.smallest_normal) * carrier.epsilon

    def _sums(self, k: int, size: arb, entries: arb, addend: arb | float = 0.0) -> arb:
        """Bound the error of sums of k products, the product of whose factors' norms is `size`."""
        return (k + 2) * (self.v * size + self.tiniest * entries) + 2 * self.v * addend

    def _rounded(self, norm: arb, before: arb, entries: arb) -> arb:
        """Bound the error after rounding a matrix of a 2-norm whose error is `before`."""
        if self.reads:
            return before
        least = self.least * (norm + before if self.scaled else arb(1))
        return before + self.u * (self.root * norm + before) + least * entries

    def _read(self, a: _Matrix) -> _Matrix:
        if not self.reads:
            return a
        return a._replace(error=a.error + self.u * self.root * a.size + self.least * self.n)

    def _norm(self, terms: tuple[float, ...]) -> arb:
        lo, hi = image([terms], self.squares[0], self.squares[1], 1)
        return abs(lo).max(abs(hi))

    def _product(
        self,
        a: _Matrix,
        b: _Matrix,
        c: _Matrix | None,
        terms: tuple[float, ...],
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> _Matrix:
        """Return ``alpha a b + beta c``, rounded once."""
        a, b = self._read(a), self._read(b)
        al, be = abs(alpha), abs(beta)
        before = al * (a.error * b.size + a.norm * b.error)
        addend = arb(0)
        if c is not None:
            before += be * c.error
            addend = be * self.root * c.size
        before += self._sums(self.n, al * self.n * a.size * b.size, arb(self.n), addend)
        return self._stored(terms, before)

    def _stored(self, terms: tuple[float, ...], before: arb) -> _Matrix:
        norm = self._norm(terms)
        return _Matrix(terms, norm, self._rounded(norm, before, arb(self.n)))

    def _combination(self, c: Sequence[float], powers: Sequence[_Matrix]) -> _Matrix:
        """Return ``sum c_i M_i``, rounded once."""
        pairs = list(zip(c, powers, strict=False))
        before = sum((abs(v) * m.error for v, m in pairs), arb(0))
        sizes = sum((abs(v) * m.size for v, m in pairs), arb(0))
        before += (len(pairs) + 1) * self.v * self.root * sizes
        return self._stored(tuple(c), before + len(pairs) * self.tiniest * self.n)

    def _completed(self, g: _Matrix, c: Sequence[float]) -> arb:
        """Bound the error of ``c_2 (G + s I)^2 - c_2 s^2 I``, by which NumPy computes some Z."""
        s = abs(arb(c[1]) / (2 * c[2]))
        moved = g.error + 2 * self.v * self.root * (g.size + s)
        size = g.norm + s + moved
        square = moved * 2 * size + self._sums(self.n, self.n * size * size, arb(self.n))
        return abs(c[2]) * (square + 3 * self.v * self.root * (size * size + s * s))

    def _even_part(self, g: _Matrix, step: Step) -> tuple[_Matrix, float]:
        """Return Z and alpha, as `engine.iterate.even_part` computes them."""
        c = tuple(step[1:])
        block, _ = even_products(len(c))
        if len(c) == 1:
            return g, c[0]
        if block == 1:
            z = self._product(g, g, g, c[-2:], c[-1], c[-2])
            if len(c) == 2 and self.wide and c[1] and c[0] ** 2 <= CANCELS * abs(step[0] * c[1]):
                z = z._replace(error=z.error.max(self._completed(g, step)))
            for k in range(len(c) - 3, -1, -1):
                z = self._product(z, g, g, c[k:], 1.0, c[k])
            return z, 1.0
        powers = [g]
        while len(powers) < block:
            powers.append(self._product(powers[-1], g, None, (0.0,) * len(powers) + (1.0,)))
        starts = range(0, len(c), block)
        blocks = [self._combination(c[i : i + block], powers) for i in starts]
        z = blocks.pop()
        while blocks:
            z = self._product(z, powers[-1], blocks[-1], c[len(blocks) * block - block :], 1.0, 1.0)
            blocks.pop()
        return z, 1.0

    def landing(self, step: Step, lower: arb, upper: arb) -> tuple[arb, arb]:
        """Enclose the computed singular values after a step on matrices with those in an interval.

        A lower end that is not positive bounds nothing.
        """
        lo, hi = image([tuple(step)], lower, upper, 2)
        entries = (arb(self.m) * self.n).sqrt()
        if len(step) == 1:
            before = self.v * self.root * hi + self.tiniest * entries
            off = self._rounded(hi, before, entries)
            return lo - off, hi + off
        self.squares = lower * lower, upper * upper
        # X as an operand in tf32.
        read = self.u * self.root * upper + self.least * entries if self.reads else arb(0)
        x = upper + read
        before = read * (upper + x) + self._sums(self.m, self.n * x * x, arb(self.n))
        z, alpha = self._even_part(self._stored((1.0,), before), step)
        z = self._read(z)
        al, c0 = abs(alpha), abs(step[0])
        d = al * z.error
        # X Z and c_0 X in one sum, or c_0 I + Z first, in the format of sums.
        size = self.n * x * al * z.size
        last = self._sums(self.n, size, entries, self.root * upper * c0)
        if self.wide:
            formed = 2 * self.v * self.root * (al * z.size + c0)
            other = self._sums(self.n, self.n * x * (al * z.size + c0 + formed), entries)
            d, last = d + formed, last.max(other)
        last += read * al * z.size
        # p(x) / x on the interval.
        near = image([tuple(step[1:])], *self.squares, 1)[0] + step[0]
        least, most = lo - upper * d, hi + upper * d
        if near > 0:
            least, most = least.max(lo * (1 - d / near)), most.min(hi * (1 + d / near))
        off = self._rounded(most, last, entries)
        return least - off, most + off


def in_matrices(
    steps: Sequence[Step],
    lower: float,
    upper: float,
    divisor: float,
    precision: Format,
    shape: tuple[int, int],
) -> tuple[arb, arb]:
    """Enclose the singular values of the result of the plain form in a format, for matrices.

    Examples
    --------
    >>> lo, hi = in_matrices([(1.5, -0.5)], 0.5, 1.0, 1.0, format_of("float64"), (8, 8))
    >>> bool(0.6874999 < lo < 0.6875), bool(1 < hi < 1.0000001)
    (True, True)
    """
    n, m = sorted(shape)
    model = MatrixModel(precision, m, n)
    return chain(steps, arb(lower) / divisor, arb(upper) / divisor, model.landing)
