"""Checks of arguments: one sentence each, for every kind of value."""

from __future__ import annotations

import decimal
import fractions
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Library

import polarlib
from polarlib import design, norms, testing
from polarlib.arrays import checks


class Stubborn:
    """Nothing can be asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (10**400, "about 10**400"),
        (-(10**5000), "about -10**5000"),
        (12345, "12345"),
        ("a\nb", r"'a\nb'"),
        ("\ud800", r"'\ud800'"),
        (np.ones((3, 2), "f4"), "an array of shape (3, 2) and dtype float32"),
        (np.float64(0.5), "np.float64(0.5)"),
        (math.sqrt, "sqrt"),
        (int, "int"),
        (object(), "<object>"),
        (Stubborn(), "<Stubborn>"),
        ([Stubborn()], "[<Stubborn>]"),
        (math, "<module>"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_shown(value: Any, said: str) -> None:
    assert checks.shown(value) == said


def test_shown_is_one_short_line() -> None:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    itself: list[Any] = []
    itself.append(itself)
    schedule = polarlib.Schedule(steps=[(1.5, -0.5)] * 100, lower=0.5)
    for value in ("x" * 10**6, [1.0] * 10**6, nested, itself, [np.eye(3)] * 20, schedule, {1: {}}):
        said = checks.shown(value)
        assert len(said) <= 120
        assert "\n" not in said


NUMBERS = [1, 1.0, np.float32(1), np.int8(1), fractions.Fraction(1), decimal.Decimal(1)]
NO_NUMBERS = ["1", b"1", None, True, np.True_, 1j, np.complex64(1), [1.0], np.ones(1), Stubborn()]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers(value: Any) -> None:
    found = checks.number("x", value)
    assert type(found) is float
    assert found == 1
    assert checks.is_number(value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=checks.shown)
def test_no_numbers(value: Any) -> None:
    for check in (checks.number, checks.count):
        with pytest.raises(ValueError, match=r"^x must be "):
            check("x", value)
    assert not checks.is_number(value)


def test_arrays_without_dimensions_are_numbers(lib: Library) -> None:
    assert checks.number("x", lib.asarray(np.array(0.5), "float32")) == 0.5
    with pytest.raises(ValueError, match="x must be a finite number, got"):
        checks.number("x", lib.asarray(np.array(0.5j), "complex64"))


@pytest.mark.parametrize(
    ("value", "ends", "allowed"),
    [
        (0, "[]", True),
        (0, "(]", False),
        (1, "[]", True),
        (1, "[)", False),
        (0.5, "()", True),
        (math.nan, "[]", False),
        (10**400, "[]", False),
        (-1, "[]", False),
    ],
    ids=checks.shown,
)
def test_intervals(value: float, ends: str, allowed: bool) -> None:
    if allowed:
        assert checks.number("x", value, 0, 1, ends=ends) == value
    else:
        with pytest.raises(ValueError, match=r"x must be a number .* got"):
            checks.number("x", value, 0, 1, ends=ends)


@pytest.mark.parametrize(
    ("low", "high", "ends", "words"),
    [
        (0, math.inf, "[]", "of at least 0"),
        (0, math.inf, "(]", "above 0"),
        (-math.inf, 2, "[)", "below 2"),
        (0, 1, "[]", "from 0 to 1"),
        (0, 1, "()", "between 0 and 1"),
        (0, 1, "[)", "of at least 0 and below 1"),
        (0, 1, "(]", "above 0 and at most 1"),
    ],
)
def test_words_of_intervals(low: float, high: float, ends: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^x must be a number {words}, got nan$"):
        checks.number("x", math.nan, low, high, ends=ends)
    with pytest.raises(ValueError, match=r"finite|number"):
        checks.number("x", math.inf, low, high, ends=ends)


def test_counts() -> None:
    assert checks.count("n", np.int8(3), 3, 3) == 3
    for value in (2, 2.0, 3.0, "3", True, np.timedelta64(3, "s"), None):
        with pytest.raises(ValueError, match="n must be an integer of at least 3, got"):
            checks.count("n", value, 3)
    with pytest.raises(ValueError, match="n must be at most 3, got about 10"):
        checks.count("n", 10**400, 1, 3)


def test_choices() -> None:
    assert checks.choice("side", np.str_("left"), ("right", "left")) == "left"
    assert checks.choice("repeat", None, (None, "last")) is None
    for value in ("lef", None, ["left"], {}, np.array(["left", "right"]), Stubborn(), 0):
        with pytest.raises(ValueError, match="side must be 'right' or 'left', got"):
            checks.choice("side", value, ("right", "left"))
    with pytest.raises(ValueError, match=r"unknown name 'bt'; did you mean 'bta'\? Known: 'aaaa'"):
        checks.choice("name", "bt", ("aaaa", "bta", "c", "d"))


def test_lists() -> None:
    for value in ([1, 2], (1, 2), np.array([1, 2]), range(1, 3), iter([1, 2])):
        assert checks.items("x", value, "a list") == [1, 2]
    for value in ("12", b"12", {1, 2}, {1: 2}, 12, None, np.array(1), [], int):
        with pytest.raises(ValueError, match="x must be a list, got"):
            checks.items("x", value, "a list")
    for value in (itertools.count(), range(10**9), [0] * 10**6):
        with pytest.raises(
            ValueError, match=f"x must have at most {checks.MOST_STEPS} members, got"
        ):
            checks.items("x", value, "a list")


def test_flags_and_functions() -> None:
    assert checks.flag("f", np.True_) is True
    for value in (1, 0, "yes", None, np.array([True, False]), Stubborn()):
        with pytest.raises(TypeError, match="f must be True or False, got"):
            checks.flag("f", value)
    with pytest.raises(TypeError, match="f must be a function, got 3"):
        checks.function("f", 3)


def test_paths() -> None:
    for value in ("a", Path("a")):
        assert checks.path("path", value) == value
    for value in (3, None, b"a", ["a"]):
        with pytest.raises(TypeError, match="path must be a str or path-like, got"):
            checks.path("path", value)
    with pytest.raises(ValueError, match="path must be a name that files can have, got"):
        checks.path("path", "a\0b")


# -- limits -----------------------------------------------------------------------------------

STEP = (1.5, -0.5)
HUGE = {
    "truncate": lambda: polarlib.Schedule(steps=[STEP], repeat="last", lower=0.5).truncate(10**9),
    "steps": lambda: polarlib.Schedule(steps=[STEP] * 10**6, lower=0.5),
    "coefficients": lambda: polarlib.Schedule(steps=[[1.0] * 10**6], lower=0.5),
    "stride": lambda: polarlib.Schedule(steps=[STEP], lower=0.5, stride=10**400),
    "orthogonalize": lambda: polarlib.orthogonalize(np.eye(3), schedule="jordan", steps=10**7),
    "orthogonalize by default": lambda: polarlib.orthogonalize(np.eye(3), steps=10**7),
    "default_schedule": lambda: polarlib.default_schedule("float32", matmuls=10**30),
    "greedy": lambda: design.greedy(1e-3, [3] * 10**6),
    "greedy of a range": lambda: design.greedy(1e-3, range(3, 10**9, 2)),
    "greedy of an iterator": lambda: design.greedy(1e-3, itertools.count(3, 2)),
    "minimax": lambda: design.minimax(10**6 + 1, 1e-3),
    "minimax of a huge degree": lambda: design.minimax(10**400 + 1, 1e-3),
    "digits": lambda: design.best(5, 1e-3, digits=10**9),
    "band": lambda: design.band(10**9, 0.3),
    "for_precision": lambda: design.for_precision("bfloat16", 0.1, steps=10**9),
    "budget": lambda: design.budget(1e-3, 15, degrees=itertools.count(3, 2)),
    "starts": lambda: design.for_spectrum([1.0, 0.5], 2, starts=10**9),
    "spectrum": lambda: design.spectrum(range(10**9)),
    "zolotarev": lambda: design.zolotarev(10**6, 1e-3),
    "marchenko_pastur": lambda: design.marchenko_pastur(10**400, 1),
    "top_singular": lambda: polarlib.top_singular(np.eye(3), 10**30),
    "schatten": lambda: norms.schatten(-(10**400)),
    "ky_fan": lambda: norms.ky_fan(10**400),
    "rms_to_rms": lambda: norms.rms_to_rms(10**400, 1),
    "update_scale": lambda: norms.update_scale(10**400, 1, "jordan"),
    "scrambled": lambda: norms.scrambled_spectrum(np.eye(3), steps=10**9),
    "orthonormal": lambda: testing.orthonormal(10**6, 10**6),
    "zoo": lambda: next(testing.zoo(10**9)),
    "a list": lambda: polarlib.polar(range(10**9)),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_is_too_large_is_refused_at_once(name: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match="must"):
        HUGE[name]()
    # No measure of speed: what is refused late runs for minutes, or for ever.
    assert time.process_time() - start < 10


@pytest.mark.slow
def test_most_steps_are_affordable() -> None:
    s = polarlib.schedule("newton_schulz_3", checks.MOST_STEPS)
    assert len(s) == checks.MOST_STEPS
    assert np.isfinite(polarlib.orthogonalize(np.eye(3), schedule=s)).all()


# -- what was refused late or not at all ------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"callback": 3},
        {"callback": "print"},
        {"completion": "no"},
        {"check_finite": np.array([True, False])},
        {"throw": None},
        {"overwrite_a": 2},
        {"out": np.eye(3)},
        {"out": (1, 2)},
    ],
    ids=repr,
)
def test_polar_refuses_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(wrong))}"):
        polarlib.polar(np.eye(3), **wrong)


@pytest.mark.parametrize("wrong", ["1.5", b"x", None, [1], 1j], ids=repr)
@pytest.mark.parametrize("name", ["lower", "upper", "input_safety"])
def test_text_is_no_number(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"schedule 'custom': {name} must be a"):
        polarlib.Schedule(steps=[STEP], **{"lower": 0.5, name: wrong})


def test_arguments_of_callers_pass_their_errors() -> None:
    def fails(*_: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        polarlib.polar(np.diag([1.0, 1e-3]), method="newton", callback=fails)


def test_test_matrices_are_as_large_as_others() -> None:
    """Lists of singular values are no lists of steps, which have at most 300 members."""
    assert testing.with_singular_values(np.ones(301)).shape == (301, 301)
