"""Norms of matrices, with dual norms, LMOs and duality maps.

    n = norms.spectral()       a norm, as every constructor below returns it
    n(x)                       its value
    n.dual_norm(g)             max of Re tr(G^H T) over ||T|| <= 1
    n.lmo(g)                   linear maximisation oracle (LMO): a T that attains that MAXIMUM;
                               descent steps along -T
    n.sharp(g)                 dual_norm(g) * lmo(g), the duality map
    n.project(x)               nearest point of the unit ball, where that has a closed form
    n.dual(), s * n            norms again

Many optimizers differ only in the norm: ``spectral`` for Muon, ``lp(inf)`` for signSGD,
``induced(1, 2)`` for SCALE, ``rms_to_rms`` for Scion and Modula, ``fanion(k)`` and its F- and
S-variants for the Fanions.

The LMO of a zero matrix is zero. Singular values up to ``max(m, n) * eps * sigma_1`` count as zero,
so that the spectral LMO of a rank-deficient matrix is the partial isometry ``U_r V_r^H``. Where the
LMO is not unique, each norm documents its choice. Results do not depend on the scale of the input.
Half precision is computed in float32. NumPy arrays and torch tensors on a CPU with NaN or infinity
raise ValueError; in other arrays, where the check might wait for a device, such a matrix gives NaN.

Examples
--------
>>> import numpy as np
>>> from polarlib import norms
>>> g = np.diag([3.0, 4.0])
>>> for n in (norms.spectral(), norms.nuclear(), norms.frobenius()):
...     print(n, float(n(g)), n.lmo(g).tolist())
spectral() 4.0 [[1.0, 0.0], [0.0, 1.0]]
nuclear() 7.0 [[0.0, 0.0], [0.0, 1.0]]
frobenius() 5.0 [[0.6, 0.0], [0.0, 0.8]]
"""

from polarlib.norms.base import Norm, duality_gap
from polarlib.norms.blockwise import block_periodic, per_block
from polarlib.norms.convolutions import convolution, kernel_to_matrix, matrix_to_kernel
from polarlib.norms.fans import fanion, ky_fan, ky_fan_dual, neon
from polarlib.norms.induced_norms import induced
from polarlib.norms.low_rank import power_step, range_lmo
from polarlib.norms.mixed import frobenius, lp
from polarlib.norms.modules import Module, bond, compose, join, layer, modular
from polarlib.norms.rows import normalise, row_balanced
from polarlib.norms.scales import (
    MUP,
    UPDATE_SCALES,
    Parametrization,
    mup,
    spectral_radii,
    update_scale,
)
from polarlib.norms.spectral_maps import (
    polargrad,
    random_spectrum,
    scrambled_spectrum,
    spectral_clip,
    spectral_power,
)
from polarlib.norms.sums import f_fanion, f_muon, f_neon, minkowski_sum, s_fanion, s_muon
from polarlib.norms.unitary import nuclear, rms_to_rms, schatten, spectral

__all__ = [
    "MUP",
    "UPDATE_SCALES",
    "Module",
    "Norm",
    "Parametrization",
    "block_periodic",
    "bond",
    "compose",
    "convolution",
    "duality_gap",
    "f_fanion",
    "f_muon",
    "f_neon",
    "fanion",
    "frobenius",
    "induced",
    "join",
    "kernel_to_matrix",
    "ky_fan",
    "ky_fan_dual",
    "layer",
    "lp",
    "matrix_to_kernel",
    "minkowski_sum",
    "modular",
    "mup",
    "neon",
    "normalise",
    "nuclear",
    "per_block",
    "polargrad",
    "power_step",
    "random_spectrum",
    "range_lmo",
    "rms_to_rms",
    "row_balanced",
    "s_fanion",
    "s_muon",
    "schatten",
    "scrambled_spectrum",
    "spectral",
    "spectral_clip",
    "spectral_power",
    "spectral_radii",
    "update_scale",
]
