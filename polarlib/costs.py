"""Former name of :mod:`polarlib.design.cost_tables`, until 0.3."""

from polarlib._renamed import renamed

__getattr__ = renamed(__name__, "polarlib.design.cost_tables")
