"""cublasLt's functions as polarlib finds them by ctypes, emulated on raw addresses.

Attributes have the numbers and sizes of cublasLt.h. An algorithm is good for the product that it
was found for, on addresses as aligned as was promised, with the workspace that it asks for; the
workspace is scribbled over. Where cublasLt would compute something else, the emulation raises.
"""

import ctypes
import itertools
import operator
import zlib

import numpy as np

from polarlib.arrays import cublaslt

from . import memory
from .cublas import DTYPES, HANDLE, SCALARS, multiply, refuse

STATUS = {0: b"CUBLAS_STATUS_SUCCESS", 7: b"CUBLAS_STATUS_INVALID_VALUE"}
STATUS |= {15: b"CUBLAS_STATUS_NOT_SUPPORTED"}
INVALID_VALUE, NOT_SUPPORTED = 7, 15
# Type of each attribute, by its number.
ATTRIBUTES = {
    "MatmulDesc": {2: "i4", 3: "i4", 4: "i4"},
    "MatrixLayout": {5: "i4", 6: "i8"},
    "MatmulPreference": {1: "u8", 3: "u4", 5: "u4", 6: "u4", 7: "u4", 8: "u4"},
}
# Compute types and CUDA's types of scalars, by number.
COMPUTES = {
    68: SCALARS["CUBLAS_COMPUTE_32F"],
    70: SCALARS["CUBLAS_COMPUTE_64F"],
    77: SCALARS["CUBLAS_COMPUTE_32F_FAST_TF32"],
}
TF32 = 77
SCALAR_TYPES = {"f": 0, "d": 1, "F": 4, "D": 5}
WORKSPACE = 64
SCRIBBLE = 0xA5


class Library:
    """The library; each function returns a status."""

    def __init__(self):
        self.numbers = itertools.count(0x1000, 8)
        self.descriptors = {}
        self.heuristics = 0
        # Whether there are algorithms at all.
        self.has_algorithms = True

    def cublasLtGetStatusName(self, status):
        return STATUS[status]

    def create(self, kind, place, *values):
        number = next(self.numbers)
        self.descriptors[number] = (kind, tuple(map(operator.index, values)), {})
        ctypes.c_void_p.from_address(place).value = number
        return 0

    def set(self, kind, number, name, address, size):
        if self.descriptors[number][0] != kind or name not in ATTRIBUTES[kind]:
            return INVALID_VALUE
        dtype = np.dtype(ATTRIBUTES[kind][name])
        if size != dtype.itemsize:
            return INVALID_VALUE
        self.descriptors[number][2][name] = int(
            np.frombuffer(ctypes.string_at(address, size), dtype)[0]
        )
        return 0

    def destroy(self, number):
        del self.descriptors[number]
        return 0

    def product(self, numbers):
        """What descriptors of an operation and of four matrices say."""
        kinds = ("MatmulDesc", *("MatrixLayout",) * 4)
        if [self.descriptors[number][0] for number in numbers] != list(kinds):
            refuse("INVALID_VALUE", "descriptors of other kinds")
        return [self.descriptors[number][1:] for number in numbers]

    def cublasLtMatmulAlgoGetHeuristic(self, handle, *arguments):
        *numbers, preference, requested, found, count = arguments
        if handle != HANDLE or requested != 1:
            return INVALID_VALUE
        product = self.product(numbers)
        if not self.has_algorithms or scalar_type(product) is None:
            return NOT_SUPPORTED
        self.heuristics += 1
        asked = self.descriptors[preference][2]
        result = cublaslt.Heuristic.from_address(found)
        if asked.get(3) != 2:
            refuse("NOT_SUPPORTED", "partial sums may be rounded")
        alignments = [asked.get(name, 256) for name in (5, 6, 7, 8)]
        result.algorithm[:6] = [0xC0DE, checksum(product), *alignments]
        result.workspace = min(WORKSPACE, asked.get(1, 0))
        result.state = 0
        ctypes.c_int.from_address(count).value = 1
        return 0

    def cublasLtMatmul(self, handle, head, alpha, *arguments):
        (a, of_a, b, of_b, beta, c, of_c, d, of_d), rest = arguments[:9], arguments[9:]
        found, work, size, stream = rest
        if handle != HANDLE:
            return INVALID_VALUE
        operator.index(stream)
        product = self.product((head, of_a, of_b, of_c, of_d))
        code, total, *alignments = cublaslt.Heuristic.from_address(found).algorithm[:6]
        addresses = (a, b, c, d)
        if (code, total) != (0xC0DE, checksum(product)):
            refuse("INVALID_VALUE", "the algorithm is another product's")
        if any(at % alignment for at, alignment in zip(addresses, alignments, strict=True)):
            refuse("INVALID_VALUE", f"addresses are less aligned than {alignments}")
        if size < WORKSPACE or not memory.arrays_at(work, size):
            refuse("INVALID_VALUE", f"a workspace of {size} bytes")
        if d in (a, b) or (c == d and product[3] != product[4]):
            refuse("INVALID_VALUE", "D lies in an operand")
        ctypes.memset(work, SCRIBBLE, size)
        self.run(product, addresses, alpha, beta)
        return 0

    def run(self, product, addresses, alpha, beta):
        (compute, _), attributes = product[0]
        sizes, places = [], []
        kind = product[1][0][0]
        for at, ((_, rows, columns, leading), more) in zip(addresses, product[1:], strict=True):
            sizes.append((rows, columns))
            places.append((at, leading, more.get(6, 0)))
            count = more.get(5, 1)
        operations = attributes.get(3, 0), attributes.get(4, 0)
        m, n = sizes[3]
        k = sizes[0][0] if operations[0] else sizes[0][1]
        if sizes[:3] != [
            (k, m) if operations[0] else (m, k),
            (n, k) if operations[1] else (k, n),
            (m, n),
        ]:
            refuse("INVALID_VALUE", f"shapes {sizes} in the operations {operations}")
        multiply(
            *("cublasLt.matmul", DTYPES[kind], scalar_type(product)),
            *((*operations, m, n, k), (alpha, beta, attributes.get(2, 0))),
            *(places, count, compute == TF32),
        )


def scalar_type(product):
    """Type of alpha and beta in a product; None for types that do not go together."""
    (compute, of_scalars), _ = product[0]
    kinds = {values[0] for values, _ in product[1:]}
    counts = {more.get(5, 1) for _, more in product[1:]}
    letter = COMPUTES.get(compute, {}).get(min(kinds))
    if len(kinds) > 1 or len(counts) > 1 or SCALAR_TYPES.get(letter) != of_scalars:
        return None
    return letter


def checksum(product):
    """A number of all that descriptors say."""
    return zlib.crc32(repr([(v, sorted(more.items())) for v, more in product]).encode())


def _for_kind(kind, method):
    return lambda self, *args: getattr(self, method)(*((kind,) * (method != "destroy")), *args)


for _kind in ATTRIBUTES:
    for _verb, _method in (("Create", "create"), ("SetAttribute", "set"), ("Destroy", "destroy")):
        setattr(Library, f"cublasLt{_kind}{_verb}", _for_kind(_kind, _method))


def install():
    """Have polarlib find an emulation of the library; return how it would find the real one."""
    before, emulated = cublaslt.library, Library()
    cublaslt.library = lambda: emulated
    return before


def uninstall(before):
    """Undo `install`."""
    cublaslt.library = before
