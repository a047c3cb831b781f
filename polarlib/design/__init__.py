"""Design of schedules, and of how to run them.

Pure functions of intervals, schedules and number formats; nothing here touches an array.
"""

from polarlib.design.bounds import largest_complement, least_error
from polarlib.design.compose import greedy
from polarlib.design.provenance import Fingerprint, fingerprint
from polarlib.design.remez import Minimax, best, minimax
from polarlib.design.restarts import restarts

__all__ = [
    "Fingerprint",
    "Minimax",
    "best",
    "fingerprint",
    "greedy",
    "largest_complement",
    "least_error",
    "minimax",
    "restarts",
]
