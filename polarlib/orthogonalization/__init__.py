"""orthogonalize() and orthogonalize_all(): a schedule of matrix products, for any array library.

options.py checks what a caller asks for, heads.py cuts matrices into blocks of rows, run.py runs a
schedule, coefficients.py one whose steps are an array, matrices.py and lists.py are the functions.
"""

from polarlib.orthogonalization.lists import orthogonalize_all
from polarlib.orthogonalization.matrices import orthogonalize
from polarlib.orthogonalization.options import Options, rule_of

__all__ = ["Options", "orthogonalize", "orthogonalize_all", "rule_of"]
