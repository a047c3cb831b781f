"""Wrong methods that the checks of this study must notice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Wrong
from rank_problem import newton_schulz, normalised, polar_factor, stated, step_sizes
from taylor_steps import chi, coefficients, phi, taylor

import polarlib

RANK, RANDOM = "slope of iterations by rank", "slope of iterations by rank, random start"
OVER = "iterations at rank 256, Taylor kappa 2, q = 5, over Muon's, start zero and random"
JORDAN = polarlib.schedule("jordan", steps=5)
PRINTED = (11.8641, -65.781, 110.3556, -77.5824, 20.635)


def step_too_few(kappa, steps, sigma):
    """Chi of a step less."""
    return chi(kappa, max(steps - 1, 0), sigma)


def jordans(kappa, steps, sigma):
    """1 / sigma_min after steps of Jordan's quintic."""
    return 1 / JORDAN.truncate(min(steps, 5)).image(sigma, 1.0)[0] if steps else 1 / sigma


def damped(kappa, steps):
    """p(1) = 1, and half of the slope at 1 that convergence of second order needs."""
    return polarlib.Schedule(steps=[(1.25, -0.25)] * steps)


def degree_too_low(kappa):
    """Phi of kappa - 1."""
    return [*phi(kappa - 1), 0, 0]


def slope_of_jordans_tau():
    """Coefficients of tau', ascending."""
    p = np.polynomial.Polynomial(JORDAN.steps[0])
    return tuple((np.polynomial.Polynomial([0, 1]) * p * p).deriv().coef)


def two_steps_too_few(kappa, steps):
    """Taylor steps, two less."""
    return taylor(kappa, steps - 2)


def one_step(steps, *, digits=False):
    """One Taylor step whatever their number."""
    return newton_schulz(1, digits=digits)


def powers_of_two(name, problem):
    """The step sizes of the normalised methods for gradient descent too."""
    return step_sizes("Muon", problem)


def no_steps(steps, *, digits=False):
    """The exact polar factor whatever the number of steps."""
    return polar_factor


WRONG = (
    Wrong(
        "a step too few",
        part="tables",
        replace={"chi": step_too_few},
        figures=(
            "chi_q, sigma_min 0.1, kappa 1",
            "chi_q, sigma_min 0.1, kappa 3",
            *(f"smallest q with chi_q at most 1.01, kappa {kappa}" for kappa in (1, 2, 3)),
        ),
    ),
    Wrong(
        "Jordan's coefficients",
        part="tables",
        replace={"chi": jordans},
        figures=("chi_q, sigma_min 0.1, kappa 2",),
    ),
    Wrong(
        "the exponent kappa^q",
        part="tables",
        replace={"exponent": lambda kappa, q: kappa**q},
        figures=("bound of chi_q, sigma_min 0.1, kappa 2",),
    ),
    Wrong(
        "the exponent (kappa + 2)^q",
        part="tables",
        replace={"exponent": lambda kappa, q: (kappa + 2) ** q},
        figures=("delta_q over its bound, largest",),
    ),
    Wrong(
        "a first-order method, c_1 halved",
        part="orders",
        replace={"taylor": damped},
        figures=("local order, kappa 1, 2, 3",),
    ),
    Wrong(
        "the degree of kappa - 1",
        part="closed_forms",
        replace={"phi": degree_too_low},
        figures=(
            "leading coefficient, kappa 1 to 5",
            "phi, delta^2 to delta^3, kappa 1",
            "phi, delta^3 to delta^5, kappa 2",
        ),
    ),
    Wrong(
        "the Taylor polynomial of kappa = 2",
        part="jordan",
        replace={"quintic": lambda: coefficients(2)},
        figures=(
            "quintic: lambda of the largest tau",
            "quintic: tau'(1)",
            "quintic: tau'(0)",
            "quintic: coefficients of tau'",
            "quintic: p(1)",
            "quintic: delta at sigma = 1",
            "quintic: largest |1 - sigma| from step 40 to 200",
        ),
    ),
    Wrong(
        "tau' with the coefficients that the paper prints",
        part="jordan",
        replace={"tau_slope": lambda: np.polynomial.Polynomial(PRINTED)},
        figures=("quintic: lambda of the largest tau, tau there, tau'(1)",),
    ),
    Wrong(
        "tau' of the deployed quintic",
        part="jordan",
        replace={"PRINTED": slope_of_jordans_tau()},
        figures=("quintic: b from three printed coefficients of tau'",),
    ),
    Wrong(
        "one Taylor step, kappa = 2",
        part="by_rank",
        replace={
            "polar_factor": newton_schulz(1),
            "newton_schulz": one_step,
        },
        figures=(
            f"{RANK}, Muon",
            f"{RANK}, Taylor kappa 2, q = 3",
            f"{RANK}, Taylor kappa 2, q = 5",
            "iterations by rank, Muon",
        ),
    ),
    Wrong(
        "normalised gradient descent",
        part="by_rank",
        replace={"gradient": normalised, "step_sizes": powers_of_two},
        figures=(f"{RANK}, gradient descent",),
    ),
    Wrong(
        "the exact polar factor",
        part="by_rank",
        replace={
            "newton_schulz": no_steps,
            "normalised": polar_factor,
        },
        figures=(f"{RANK}, Taylor kappa 2, q = 1", f"{RANK}, normalised gradient descent"),
    ),
    Wrong(
        "the curvatures of the other figures",
        part="by_rank",
        replace={"equal_curvatures": stated},
        figures=(f"{RANK}, gradient descent, equal curvatures",),
    ),
    Wrong(
        "double precision",
        part="in_digits",
        replace={"NUMBER": float},
        figures=("iterations in 50 digits, Taylor kappa 2, q = 3",),
    ),
    Wrong(
        "one Taylor step, kappa = 2",
        part="by_rank_random",
        replace={
            "polar_factor": newton_schulz(1),
            "newton_schulz": one_step,
            "SEEDS": range(3),
        },
        figures=(
            f"{RANDOM}, Muon",
            f"{RANDOM}, Taylor kappa 2, q = 3",
            f"{RANDOM}, Taylor kappa 2, q = 5",
        ),
    ),
    Wrong(
        "one Taylor step, kappa = 2",
        part="by_rank_random",
        replace={"newton_schulz": one_step, "SEEDS": range(3)},
        figures=(OVER,),
    ),
    Wrong(
        "normalised gradient descent",
        part="by_rank_random",
        replace={"gradient": normalised, "step_sizes": powers_of_two, "SEEDS": range(3)},
        figures=(f"{RANDOM}, gradient descent",),
    ),
    Wrong(
        "the exact polar factor",
        part="by_rank_random",
        replace={
            "newton_schulz": no_steps,
            "SEEDS": range(3),
        },
        figures=(f"{RANDOM}, Taylor kappa 2, q = 1",),
    ),
    Wrong(
        "two steps too few",
        part="gaussian",
        replace={"taylor": two_steps_too_few},
        figures=tuple(
            f"{name}, Gaussian 64 and 256, kappa 2, q = {q}"
            for name in ("chi_q", "nuclear norm over <M, O>")
            for q in (3, 5)
        ),
    ),
    Wrong(
        "the norm in both places",
        part="scaling",
        replace={"NORMALISATIONS": ("frobenius", "frobenius")},
        figures=("chi_5 of a gradient of norm 0.001, over max(1, norm), over its norm",),
    ),
    Wrong(
        "kappa products per step",
        part="costs",
        replace={
            "operations": lambda kappa, q, m, n: (
                (4 * n * m**2 + 8 * m**3) / (kappa * q * 2 * n * m**2)
            )
        },
        figures=("operations of the SVD over those of q steps, least and most",),
    ),
)
