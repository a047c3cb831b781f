"""Wrong calls, each with the error that mypy reports in its line, in brackets. Never run."""

# ruff: noqa: B018 - attributes are looked up for nothing

import numpy as np

import polarlib
from polarlib import design

a = np.eye(3)
polarlib.polar(a, side="up")  # [call-overload]
polarlib.polar(a, "upper")  # [call-overload]
polarlib.polar(a, methods="svd")  # [call-overload]
polarlib.orthogonalize(a, steps="five")  # [call-overload]
polarlib.nearest_rotation(a, True)  # [call-overload]
polarlib.polar(a).unitry  # [attr-defined]
polarlib.nonsense  # [attr-defined]
polarlib.top_singular(a)  # [call-arg]
design.greedy("0.1", [5])  # [arg-type]
