"""Former name of :mod:`polarlib.norms.spectral_maps`, until 0.3."""

from polarlib._renamed import renamed

__getattr__ = renamed(__name__, "polarlib.norms.spectral_maps")
