"""Arrays: conversion of arguments, arithmetic of each library, number formats, checks.

Importing this package registers the classes of all libraries for :func:`ops_of`, without importing
any array library.
"""

from polarlib.arrays.cupy_ops import CupyOps
from polarlib.arrays.dask_ops import DaskOps
from polarlib.arrays.entered import Entered, enter
from polarlib.arrays.entry import (
    as_matrix,
    check_same_place,
    finite_max_abs,
    is_array,
    libraries,
    not_finite,
    plain_array,
    refuse_hidden,
)
from polarlib.arrays.functions import above_noise
from polarlib.arrays.in_place import InPlaceOps
from polarlib.arrays.jax_ops import JaxOps
from polarlib.arrays.library import dtype_name
from polarlib.arrays.numpy_ops import NumpyOps
from polarlib.arrays.ops import Diagonal, Ops, ops_of
from polarlib.arrays.torch_ops import TorchGradOps, TorchOps, TorchTracedOps
from polarlib.arrays.torch_sharded import AnyTorchOps, TorchShardedOps

__all__ = [
    "AnyTorchOps",
    "CupyOps",
    "DaskOps",
    "Diagonal",
    "Entered",
    "InPlaceOps",
    "JaxOps",
    "NumpyOps",
    "Ops",
    "TorchGradOps",
    "TorchOps",
    "TorchShardedOps",
    "TorchTracedOps",
    "above_noise",
    "as_matrix",
    "check_same_place",
    "dtype_name",
    "enter",
    "finite_max_abs",
    "is_array",
    "libraries",
    "not_finite",
    "ops_of",
    "plain_array",
    "refuse_hidden",
]
