"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from common import Wrong


def by_eigenvalues(a: np.ndarray, method: str) -> tuple[float, float, float]:
    """A (A^T A)^(-1/2), relative eigenvalues of at least 1e-12."""
    values, vectors = np.linalg.eigh(a.T @ a)
    values = np.maximum(values, 1e-12 * values[-1])
    u = a @ (vectors / np.sqrt(values)) @ vectors.T
    h = u.T @ a
    backward = np.linalg.norm(a - u @ (h + h.T) / 2) / np.linalg.norm(a)
    orthogonality = np.linalg.norm(u.T @ u - np.eye(len(u))) / math.sqrt(len(u))
    return 1, float(backward), float(orthogonality)


def unweighted(l: Any) -> tuple[Any, Any, Any]:
    """Halley's iteration."""
    return 3, 1, 3


WRONG = (
    Wrong(
        "one pole too few: (15, 14) twice",
        part="functions",
        replace={"MOST": 7},
        figures=("error of type (17, 16) twice at 1e-16",),
    ),
    Wrong(
        "degree 2r in place of 2r + 1",
        part="functions",
        replace={"degree": lambda r: 2 * r},
        figures=("errors of design.zolotarev against the closed form",),
    ),
    Wrong(
        "degree 2r in place of 2r + 1",
        part="iterations",
        replace={"degree": lambda r: 2 * r},
        figures=(
            *(f"iterations, r = {r}" for r in (1, 2, 8)),
            *(
                f"iterations at {condition}, r = 1 to 8"
                for condition in ("1e+02", "1e+05", "1e+07")
            ),
            "most iterations to 1e16, r = 1 and 8",
        ),
    ),
    Wrong(
        "Halley's iteration without weights",
        part="iterations",
        replace={"weights": unweighted},
        figures=("iterations of QDWH by its recurrence",),
    ),
    Wrong(
        "Halley's iteration in place of QDWH, and QDWH in place of Zolotarev's function",
        part="matrices",
        replace={"METHODS": ("halley", "qdwh")},
        figures=(
            "most iterations of polar(method='qdwh')",
            "most iterations of polar(method='zolotarev')",
        ),
    ),
    Wrong(
        "the eigenvalues of AᵀA",
        part="matrices",
        replace={"decompose": by_eigenvalues},
        figures=(
            "worst backward errors, qdwh and zolotarev",
            "worst orthogonality, qdwh and zolotarev",
        ),
    ),
)
