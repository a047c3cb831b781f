"""orthogonalize() and orthogonalize_all(): a schedule of matrix products, for any array library.

options.py checks the arguments, heads.py splits matrices into blocks of rows, run.py runs a
schedule, coefficients.py runs one whose steps are an array, and matrices.py and lists.py have the
two functions.
"""

from polarlib.orthogonalization.lists import orthogonalize_all
from polarlib.orthogonalization.matrices import orthogonalize
from polarlib.orthogonalization.options import Options, rule_of

__all__ = ["Options", "orthogonalize", "orthogonalize_all", "rule_of"]
