"""Calls of every public function that takes arrays, on matrices of other shapes and contents.

They are those of the rows of tests/test_fuzz.py, in which a 4 x 3 matrix stands for any m x n one,
a symmetric 3 x 3 matrix for a positive definite n x n one, and an identity for itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import test_fuzz

SHAPES = {"square": (16, 16), "tall": (24, 10), "wide": (10, 24), "stack": (3, 12, 8)}
DTYPES = ("float32", "float64", "complex64", "bfloat16")
CONTENTS = ("regular", "NaN", "rank-deficient", "zero")
# Above 320 columns polar iterates: further calls of the functions that have it inside.
LARGE = (330, 330)
LARGE_TOO = ("polarlib.polar", "polarlib.nearest_orthogonal", "polarlib.norms.polargrad")
# Rows with arrays that no device is asked for.
APART = {
    "polarlib.files.write_npy": "writes NumPy's arrays",
    "polarlib.files.write_npys": "writes NumPy's arrays",
    "polarlib.testing.assert_polar": "compares NumPy's arrays",
    "polarlib.testing.assert_unitary_factor": "compares NumPy's arrays",
    "polarlib.polar_tall": "reads blocks of rows, of NumPy's arrays",
    "polarlib.measure": "measures in NumPy's double precision, or mpmath's",
}


@dataclass(frozen=True)
class Matrices:
    """What the arrays of a row are replaced by."""

    shape: str
    dtype: str
    content: str

    @property
    def name(self) -> str:
        """Return a name for reports."""
        return f"{self.shape}, {self.dtype}, {self.content}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the shape."""
        return LARGE if self.shape == "large" else SHAPES[self.shape]

    def matrix(self) -> np.ndarray:
        """Matrices in float64 or complex128; singular values of regular ones are well apart."""
        rng = np.random.Generator(np.random.PCG64(list(self.sizes)))
        a = rng.standard_normal(self.sizes)
        if self.dtype.startswith("complex"):
            a = a + 1j * rng.standard_normal(self.sizes)
        if self.content == "zero":
            return 0 * a
        u, _, vh = np.linalg.svd(a, full_matrices=False)
        values = np.linspace(2, 0.5, min(self.sizes[-2:]))
        if self.content == "rank-deficient":
            values[-2:] = 0
        a = (u * values) @ vh
        if self.content == "NaN":
            a[..., -1, 0] = np.nan
        return a

    def definite(self) -> np.ndarray:
        """Return X^H X of the matrix X, and positive definite if that is regular."""
        x = self.matrix()
        gram = np.swapaxes(x.conj(), -1, -2) @ x
        return gram + np.eye(x.shape[-1]) * (self.content == "regular")

    def replaced(self, value: Any, convert: Callable[[np.ndarray], Any]) -> Any:
        """The value of an argument, arrays replaced and converted."""
        if isinstance(value, list | tuple):
            return type(value)(self.replaced(each, convert) for each in value)
        if not isinstance(value, np.ndarray):
            return value
        rows, columns = self.sizes[-2:]
        if value.shape == (4, 3):
            return convert(self.matrix())
        if np.array_equal(value, test_fuzz.S):
            return convert(self.definite())
        if value.shape in ((4, 4), (3, 3)):
            return convert(np.eye(rows if len(value) == 4 else columns))
        return convert(value)

    def arguments(self, name: str, convert: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        """Arguments of a public function, arrays converted."""
        values = test_fuzz.ROWS[name]()
        return {key: self.replaced(value, convert) for key, value in values.items()}

    def call(self, name: str, convert: Callable[[np.ndarray], Any]) -> Any:
        """Call a public function."""
        return test_fuzz.interface()[name].run(self.arguments(name, convert))


def has_array(value: Any) -> bool:
    """Whether a value is an array or holds some."""
    if isinstance(value, dict):
        return has_array(list(value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_array, value))
    return isinstance(value, np.ndarray)


def functions() -> list[str]:
    """Names of the public functions that take arrays of any library."""
    rows = test_fuzz.ROWS
    return sorted(n for n in rows if n not in APART and has_array(rows[n]()))


def matrices(name: str, every: bool) -> Iterator[Matrices]:
    """What a function is called on: a Latin square of the combinations, or every one."""
    lists = (tuple(SHAPES), DTYPES, CONTENTS)
    for place in itertools.product(*(range(len(each)) for each in lists)):
        # Zero, and not the sum alone, so that regular squares of float32 are among them.
        if every or sum(place) % 4 == 0:
            yield Matrices(*(each[i] for each, i in zip(lists, place, strict=True)))
    if name in LARGE_TOO:
        for content in CONTENTS[:3]:
            yield Matrices("large", "float32", content)
