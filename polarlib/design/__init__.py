"""Design of schedules, and of how to run them.

Pure functions of intervals, schedules and number formats; nothing here touches an array.
"""

from polarlib.design.compose import greedy
from polarlib.design.provenance import Fingerprint, fingerprint
from polarlib.design.remez import best, minimax
from polarlib.design.restarts import restarts

__all__ = ["Fingerprint", "best", "fingerprint", "greedy", "minimax", "restarts"]
