"""Design of schedules, and of how to run them.

Pure functions of schedules and number formats; nothing here touches an array.
"""

from polarlib.design.restarts import restarts

__all__ = ["restarts"]
