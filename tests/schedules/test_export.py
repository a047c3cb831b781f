"""Rounding of coefficients, JSON and source code of schedules: each text is read back."""

from __future__ import annotations

import ast
import bisect
import dataclasses
import functools
import json
import math
import re
import shutil
import struct
import subprocess
import sys
import types
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import ml_dtype
from hypothesis import given, settings
from hypothesis import strategies as st

import polarlib
from polarlib import Schedule, ScheduleWarning, schedule
from polarlib._schedules import export
from polarlib._schedules.validity import NORMALISATIONS
from polarlib.arrays.formats import format_of, round_number

DTYPE_OF = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float8_e4m3": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "float32": "float32",
    "float64": "float64",
}
KINDS = ("python", "c", "triton", "cuda", "latex")


def bits(x: float) -> bytes:
    return struct.pack("<d", x)


def same(x: float, y: float) -> bool:
    return bits(x) == bits(y) or (math.isnan(x) and math.isnan(y))


# -- rounding one number ---------------------------------------------------------------------


@functools.cache
def numbers(name: str) -> list[float]:
    """Every number >= 0 of a format, by its code, and the one that would come after the largest."""
    f = format_of(name)
    mantissas = 2 ** (f.significand - 1)
    unit = f.smallest_normal * f.epsilon
    found = [m * unit for m in range(mantissas)]
    scale = f.smallest_normal
    while found[-1] < f.largest:
        found += [(1 + m * f.epsilon) * scale for m in range(mantissas)]
        scale *= 2
    end = found.index(f.largest) + 1
    return [*found[:end], 2 * found[end - 1] - found[end - 2]]


def by_hand(x: float, name: str) -> float:
    """The nearest of all numbers, by exact arithmetic; of two the one with the even code."""
    known = numbers(name)
    size = abs(x)
    if size >= known[-1]:
        code = len(known) - 1
    else:
        below = bisect.bisect_right(known, size) - 1
        gaps = [abs(Fraction(v) - Fraction(size)) for v in known[below : below + 2]]
        up = gaps[1] < gaps[0] or (gaps[1] == gaps[0] and below % 2 == 1)
        code = below + up
    value = format_of(name).saturates_to if code == len(known) - 1 else known[code]
    return math.copysign(value, x)


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2", "float16", "bfloat16", "tf32"])
def test_rounding_against_all_neighbours(name):
    known = numbers(name)
    stride = max(1, len(known) // 4000) | 1  # odd: codes of both parities
    picked = sorted({*range(0, len(known) - 1, stride), *range(40), *range(-40, -1)})
    for k in picked:
        k %= len(known)
        if k == len(known) - 1:
            continue
        low, high = known[k], known[k + 1]
        middle = low + (high - low) / 2  # exact: doubles have digits to spare
        for x in (low, middle, math.nextafter(middle, 0), math.nextafter(middle, math.inf)):
            for y in (x, -x):
                assert same(round_number(y, format_of(name)), by_hand(y, name)), y.hex()


@settings(max_examples=400)
@given(st.floats(allow_nan=False), st.sampled_from(["float8_e4m3", "float8_e5m2", "float16"]))
def test_rounding_of_any_double(x, name):
    assert same(round_number(x, format_of(name)), by_hand(x, name))


@pytest.mark.parametrize("name", DTYPE_OF)
def test_rounding_against_casts(name):
    dtype = ml_dtype(DTYPE_OF[name])
    if dtype is None:
        pytest.skip("ml_dtypes is not installed")
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308]
    with np.errstate(all="ignore"):
        # Casts of ml_dtypes may pass through single precision: give them its numbers only.
        x = rng.integers(0, 2**32, 4000, dtype=np.uint32).view("f4").astype("f8")
        x = np.concatenate(
            [x, np.float32(rng.standard_normal(4000) * 10.0 ** rng.integers(-9, 9, 4000)), special]
        )
        if name in ("float16", "float32", "float64"):  # NumPy's own round once
            wide = rng.integers(0, 2**64, 4000, dtype=np.uint64).view("f8")
            x = np.concatenate([x, wide, x * (1 + 2.0**-30)])
        expected = x.astype(dtype).astype("f8")
    for value, wanted in zip(x.tolist(), expected.tolist(), strict=True):
        assert same(round_number(value, format_of(name)), wanted), value.hex()


def test_no_double_rounding():
    # Just above the middle of two numbers of bfloat16, and nearer to it than single precision sees.
    x = 1 + 2.0**-8 + 2.0**-40
    assert float(np.float32(x)) == 1 + 2.0**-8
    assert round_number(x, format_of("bfloat16")) == 1 + 2.0**-7


# -- quantize --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPE_OF)
def test_quantized_coefficients(name):
    dtype = ml_dtype(DTYPE_OF[name])
    if dtype is None:
        pytest.skip("ml_dtypes is not installed")
    s = schedule("jordan", 3)
    q = s.quantize(name)
    assert q.steps == tuple(tuple(float(dtype.type(c)) for c in step) for step in s.steps)
    assert q.name == f"jordan, coefficients in {name}"
    assert dataclasses.replace(q, steps=s.steps, name=s.name) == s
    assert q.quantize(name) == q


def test_quantizing_keeps_every_other_field():
    s = Schedule(
        steps=[(1.5, -0.5)], lower=0.123456789, upper=1.1, normalisation="schatten4",
        input_safety=1.0123456789, name="a", source="b", repeat="last",
    )  # fmt: skip
    q = s.quantize("float8_e5m2")
    assert dataclasses.replace(q, name="a") == s  # 1.5 and -0.5 are numbers of every format


def test_quantizing_to_two_formats_says_so():
    s = schedule("you").quantize("float16").quantize("bfloat16")
    assert s.name == "you, coefficients in float16, coefficients in bfloat16"
    assert len({len(step) for step in s.steps}) == 1


def test_hazards_are_found_anew():
    # Rounded to four bits, the first step is zero at the end of the interval.
    with pytest.raises(ValueError, match=r"'you, coefficients in float8_e4m3': step 1.*sign"):
        schedule("you").quantize("float8_e4m3")
    with pytest.raises(ValueError, match=r"'cans, coefficients in bfloat16'.*leaves \(0, 2\)"):
        schedule("cans").quantize("bfloat16")
    with pytest.raises(ValueError, match=r"float8_e4m3.*finite"):
        Schedule(steps=[(1000.0,), (1e-3,)], lower=0.1).quantize("float8_e4m3")
    with pytest.raises(ValueError, match=r"float16.*finite"):
        Schedule(steps=[(1e5,), (1e-5,)], lower=0.1).quantize("float16")


@pytest.mark.parametrize("bad", ["bf16", "", None, 16, np.float16, ["float32"]])
def test_quantize_to_an_unknown_format(bad):
    with pytest.raises(ValueError, match="unknown number format"):
        schedule("jordan").quantize(bad)


# -- JSON ------------------------------------------------------------------------------------


def read_strictly(path: Any) -> dict[str, Any]:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def assert_same_schedule(got: Schedule, expected: Schedule) -> None:
    assert got == expected
    for field in dataclasses.fields(expected):
        # repr tells zeros of different sign, and 1 from 1.0.
        assert repr(getattr(got, field.name)) == repr(getattr(expected, field.name))


@pytest.mark.parametrize("name", polarlib.schedules())
def test_published_sets_there_and_back(name, tmp_path):
    s = schedule(name)
    path = tmp_path / "schedule.json"
    s.to_json(path)
    assert_same_schedule(Schedule.from_json(path), s)
    assert_same_schedule(Schedule.from_json(str(path)), s)
    found = read_strictly(path)
    assert found == json.loads(json.dumps(s.to_dict()))
    assert (found["schema"], found["version"]) == ("polarlib.schedule", 1)
    assert found["polarlib"] == polarlib.__version__
    for step, row in zip(s.steps, found["steps"], strict=True):
        assert list(map(bits, step)) == [bits(float.fromhex(h)) for h in row["hex"]]
        assert list(map(bits, step)) == list(map(bits, row["decimal"]))
    figures = found["figures"]
    assert figures["error"] == s.error()
    assert tuple(figures["image"]) == s.image()
    assert figures["slope"] == s.slope
    assert figures["divergence_limit"] == s.divergence_limit
    assert figures["matmuls"] == s.matmuls


coefficients = st.floats(-1e-3, 1e-3)
texts = st.text(st.characters(), max_size=12)


@st.composite
def schedules(draw: Any) -> Schedule:
    """Steps near Newton's of mixed degree, with every digit, and any text."""
    tails = draw(st.lists(st.lists(coefficients, max_size=3), min_size=1, max_size=4))
    steps = [(1.5 + draw(coefficients), -0.5 + draw(coefficients), *tail) for tail in tails]
    lower = draw(st.floats(0.1, 0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return Schedule(
            steps=steps,
            lower=lower,
            upper=draw(st.floats(lower, 1.0)),
            normalisation=draw(st.sampled_from(sorted(NORMALISATIONS))),
            input_safety=draw(st.floats(1.0, 2.0)),
            name=draw(texts),
            source=draw(texts),
            repeat=draw(st.sampled_from([None, "last", "forever"])),
        )


@settings(max_examples=60)
@given(schedules())
def test_any_schedule_there_and_back(tmp_path_factory, s):
    path = tmp_path_factory.mktemp("json") / "s.json"
    s.to_json(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        assert_same_schedule(Schedule.from_json(path), s)


def test_extreme_coefficients_there_and_back(tmp_path):
    s = Schedule(steps=[(1.0, -0.0, 5e-324), (1.0000000000000002, 2.2e-308)], lower=0.5)
    s.to_json(tmp_path / "s.json")
    assert_same_schedule(Schedule.from_json(tmp_path / "s.json"), s)


def test_figures_that_are_infinite(tmp_path):
    s = Schedule(steps=[(1e-305,)], lower=0.5)
    assert s.divergence_limit == math.inf
    s.to_json(tmp_path / "s.json")
    assert read_strictly(tmp_path / "s.json")["figures"]["divergence_limit"] is None
    assert Schedule.from_json(tmp_path / "s.json") == s


def test_to_dict_is_a_copy():
    s = schedule("jordan")
    s.to_dict()["steps"][0]["decimal"][0] = 7.0
    assert s.to_dict()["steps"][0]["decimal"][0] == s.steps[0][0]


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "s.json"
    schedule("jordan").to_json(path)
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        schedule("you").to_json(tmp_path / "nowhere" / "s.json")

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        schedule("you").to_json(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def put(**entries: Any) -> Any:
    return lambda d: d.update(entries)


def take(key: str) -> Any:
    return lambda d: d.pop(key)


def step(**entries: Any) -> Any:
    return lambda d: d["steps"][1].update(entries)


DAMAGES = {
    "other schema": (put(schema="safetensors"), "key 'schema': expected 'polarlib.schedule'"),
    "no schema": (take("schema"), "key 'schema'.*missing"),
    "newer": (put(version=2), "key 'version': expected 1 .*newer polarlib.*got 2"),
    "version 0": (put(version=0), "key 'version': expected 1, got 0"),
    "version text": (put(version="1"), "key 'version': expected 1, got '1'"),
    "version true": (put(version=True), "key 'version': expected 1, got True"),
    "no version": (take("version"), "key 'version'.*missing"),
    "unknown key": (put(normalization="spectral"), "unknown key 'normalization'.*'normalisation'"),
    "lower a text": (put(lower="0.1"), "key 'lower': expected a finite number, got '0.1'"),
    "lower true": (put(lower=True), "key 'lower': expected a finite number, got True"),
    "lower null": (put(lower=None), "key 'lower': expected a finite number, got None"),
    "lower nan": (put(lower=math.nan), "key 'lower': expected finite numbers, got nan"),
    "upper infinite": (put(upper=math.inf), "key 'upper': expected finite numbers, got inf"),
    "upper beyond": (put(upper=10**400), "key 'upper': expected finite numbers, got 10+"),
    "lower zero": (put(lower=0), r"interval needs 0 < lower.*\[0.0, 1.0\]"),
    "name a number": (put(name=5), "key 'name': expected a string, got 5"),
    "source null": (put(source=None), "key 'source': expected a string, got None"),
    "safety": (put(input_safety=0.5), "input_safety .*0.5"),
    "normalisation": (put(normalisation="frobenus"), "normalisation 'frobenus'.*'frobenius'"),
    "repeat": (put(repeat="always"), "repeat must be .*'always'"),
    "repeat a list": (put(repeat=["last"]), "repeat must be .*'last'"),
    "steps empty": (put(steps=[]), "key 'steps': expected a non-empty list"),
    "steps an object": (put(steps={}), "key 'steps': expected a non-empty list"),
    "plain steps": (put(steps=[[1.5, -0.5]]), "key 'steps', step 1: expected 'decimal'"),
    "step without hex": (lambda d: d["steps"][1].pop("hex"), "step 2: expected .*'hex'"),
    "lengths": (step(decimal=[1.5]), "step 2: expected .*as many"),
    "empty step": (step(decimal=[], hex=[]), "step 2: expected"),
    "decimal a text": (step(decimal=["1.5", "-0.5"]), "step 2: expected 'decimal', .*numbers"),
    "decimal nan": (step(decimal=[1.5, math.nan]), "step 2: expected 'decimal', .*finite"),
    "hex a number": (step(hex=[1.5, -0.5]), "step 2: expected a finite hexadecimal float, got 1.5"),
    "hex no number": (step(hex=["0x1.8p+0", "half"]), "step 2: .*hexadecimal float, got 'half'"),
    "hex nan": (step(hex=["0x1.8p+0", "nan"]), "step 2: .*finite hexadecimal float, got 'nan'"),
    "hex huge": (step(hex=["0x1p+5000", "0x0p+0"]), "step 2: .*finite hexadecimal float"),
    "disagreement": (
        step(decimal=[1.5000000000000002, -0.5]),
        r"step 2: decimal 1.5000000000000002 and hexadecimal '0x1.8000000000000p\+0'",
    ),
    "sign of zero": (
        step(decimal=[1.5, 0.0], hex=["0x1.8p+0", "-0x0.0p+0"]),
        "step 2: decimal 0.0",
    ),
    "sign flips": (
        step(decimal=[-1.5, -0.5], hex=["-0x1.8p+0", "-0x1.0p-1"]),
        "step 2 maps .*not positive",
    ),
}
DAMAGES |= {
    f"without {f}": (take(f), f"key {f!r}.*missing")
    for f in ("steps", "lower", "upper", "normalisation", "input_safety", "name", "source",
              "repeat")
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage, tmp_path):
    change, message = DAMAGES[damage]
    document = Schedule(steps=[(1.5, -0.5)] * 3, lower=0.5).to_dict()
    change(document)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Schedule.from_json(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1.5, -0.5]", b"null", b"\xff\xfe\xfa", b"\x93NUMPY", b"[" * 100_000, b'"text"'],
)
def test_files_of_another_kind(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json"):
        Schedule.from_json(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        Schedule.from_json(tmp_path / "none.json")
    with pytest.raises(OSError):  # noqa: PT011 (which one depends on the system)
        Schedule.from_json(tmp_path)
    with pytest.raises(TypeError):
        Schedule.from_json(3)


def test_what_is_for_readers_is_not_looked_at(tmp_path):
    s = Schedule(steps=[(1.5, -0.5)], lower=0.5)
    document = s.to_dict() | {"polarlib": "99.0", "figures": None}
    del document["convention"]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert Schedule.from_json(path) == s


# -- every field goes along ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Extended(Schedule):
    """A schedule with fields of a later day."""

    goal: str = "polar"
    band: tuple[float, float] = (0.0, 1.0)
    order: int = 2
    exact: bool = False


def extended(**fields: Any) -> Extended:
    return Extended(steps=((1.5, -0.5),), lower=0.5, **fields)


def test_every_field_is_written():
    s = schedule("polar_express")
    document = s.to_dict()
    texts = {kind: s.to_code(kind) for kind in KINDS}
    for field in dataclasses.fields(Schedule):
        assert field.name in document
        value = getattr(s, field.name)
        if field.name != "steps":
            assert document[field.name] == json.loads(json.dumps(value))
            for kind in KINDS:
                assert value is None or f"{field.name}: " in texts[kind], kind


def test_a_new_field_joins_by_itself(tmp_path):
    s = extended(goal="clip", band=(0.1, 0.3), order=3, exact=True)
    s.to_json(tmp_path / "s.json")
    assert_same_schedule(Extended.from_json(tmp_path / "s.json"), s)
    for kind in KINDS:
        assert "goal: clip" in s.to_code(kind)
    # Who does not know the field must not take the schedule for another one.
    with pytest.raises(ValueError, match="unknown key 'goal'"):
        Schedule.from_json(tmp_path / "s.json")
    # A file from before the field has its default.
    Schedule(steps=[(1.5, -0.5)], lower=0.5).to_json(tmp_path / "old.json")
    assert Extended.from_json(tmp_path / "old.json") == extended()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("goal", 3, "a string"), ("order", 2.5, "an integer"), ("order", True, "an integer"),
     ("exact", 1, "true or false"), ("band", [0.0, math.inf], "finite numbers")],
)  # fmt: skip
def test_types_of_new_fields(key, value, expected, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(extended().to_dict() | {key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"key {key!r}: expected {expected}, got"):
        Extended.from_json(path)


def test_words_of_normalisation_and_repeat():
    assert set(export.REPEATS) == {None, "last", "forever"}
    # "none" divides by nothing, not even the safety.
    for kind, said in (("none", False), ("spectral", True)):
        s = Schedule(steps=[(1.5, -0.5)], lower=0.5, normalisation=kind, input_safety=1.25)
        assert ("and by 1.25" in s.to_code("python")) is said


# -- code ------------------------------------------------------------------------------------

MIXED = Schedule(
    steps=[(2.875, -3.3, 1.4), (1.1,), (1.5000000000000002, -1 / 3, 1e-17, -5e-324)],
    lower=0.1,
    input_safety=1.01,
    name="mixed",
    source="none",
)
NASTY = (
    '*/ int x; /* "quoted" \\',
    "//*/*/*/",
    "ends in ??/",
    "int",
    "lambda",
    "3rd set",
    "Bj\u00f6rck \u4e94\u6b69 \u03c3\u21a6U\u2080",
    "\u202eright to left\u202c \u2066",
    "line\nimport os\r\n#error\x0b\x0c\x85\u2028 x",
    "",
    "%s {} {0} $x_1^2$ & # ~ \\end{table} < > |",
    "coding: utf-16",
    "\ud800 alone \x00",
    "a" * 300,
    "'''\"\"\"",
)


def named(name: str) -> Schedule:
    return dataclasses.replace(MIXED, name=name, source=name)


def padded(steps: Any) -> list[list[float]]:
    longest = max(map(len, steps))
    return [list(s) + [0.0] * (longest - len(s)) for s in steps]


CASES = {"mixed": MIXED} | {n: schedule(n) for n in ("jordan", "polar_express", "turbo_muon")}
CASES |= {f"named {k}": named(name) for k, name in enumerate(NASTY)}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Schedule:
    return CASES[request.param]


@pytest.mark.parametrize("bad", ["C", "pytohn", "", None, 3, ["c"]])
def test_unknown_kind_of_code(bad):
    with pytest.raises(ValueError, match=r"unknown kind of code .*'python'"):
        MIXED.to_code(bad)
    with pytest.raises(ValueError, match="did you mean 'python'"):
        MIXED.to_code("pytohn")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_end_in_one_newline_and_say_what_they_are(kind, case):
    text = case.to_code(kind)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert text.replace("\n", "").isprintable()
    text.encode("utf-8")
    about = re.sub(r"\n[#%* ]+", " ", text)
    for words in ("a x + b x^3 + c x^5", "first step first", case.normalisation, repr(case.lower)):
        assert words in about


def test_python(case, tmp_path):
    text = case.to_code("python")
    assert repr(ast.literal_eval(text)) == repr(case.steps)
    # The same from a file, where a comment could declare another encoding.
    path = tmp_path / "steps.py"
    path.write_text(text, encoding="utf-8")
    assert repr(eval(compile(path.read_bytes(), str(path), "eval"))) == repr(case.steps)


def test_source_stands_in_the_comment():
    text = schedule("polar_express").to_code("python")
    about = re.sub(r"\n# *", " ", text)
    assert schedule("polar_express").source in about
    assert "divided by its Frobenius norm, and by 1.01" in about


def test_triton(case, monkeypatch):
    class constexpr:
        def __init__(self, value: Any) -> None:
            self.value = value

    language = types.ModuleType("triton.language")
    language.constexpr = constexpr
    triton = types.ModuleType("triton")
    triton.language = language
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "triton.language", language)
    space: dict[str, Any] = {}
    exec(case.to_code("triton"), space)
    found = {k: v.value for k, v in space.items() if isinstance(v, constexpr)}
    rows = padded(case.steps)
    assert found.pop("STEPS") == len(case)
    assert found.pop("DEGREES") == tuple(2 * len(s) - 1 for s in case.steps)
    assert repr(found.pop("COEFFICIENTS")) == repr(tuple(map(tuple, rows)))
    for k, row in enumerate(rows, 1):
        for i, c in enumerate(row):
            assert bits(found.pop(f"C{k}_{2 * i + 1}")) == bits(c)
    assert not found


def identifier(text: str) -> str:
    return re.search(r"#ifndef (\w+)_H\n", text)[1]


def compile_and_run(command: list[str], source: str, tmp_path: Any, ending: str) -> list[str]:
    path = tmp_path / f"main.{ending}"
    path.write_text(source, encoding="utf-8")
    program = str(tmp_path / "program")
    done = subprocess.run(
        [*command, "-Wall", "-Wextra", "-Werror", "-pedantic", str(path), "-o", program],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()


def main_program(headers: dict[str, tuple[str, list[str]]]) -> str:
    """Print degrees and coefficients of each header, included twice."""
    lines = ["#include <stdio.h>"]
    lines += [f'#include "{file}"' for file in headers] * 2
    lines += ["int main(void) {", "  int k, i;"]
    for macro, arrays in headers.values():
        name = macro.lower()
        lines += [f'  printf("%d %d\\n", {macro}_STEPS, {macro}_TERMS);',
                  f"  for (k = 0; k < {macro}_STEPS; k++) {{",
                  f'    printf("%d\\n", {name}_degree[k]);',
                  f"    for (i = 0; i < {macro}_TERMS; i++) {{"]  # fmt: skip
        lines += [f'      printf("%a\\n", (double){name}{a}[k][i]);' for a in arrays]
        lines += ["    }", "  }"]
    return "\n".join([*lines, "  return 0;", "}", ""])


def expected_output(s: Schedule, precisions: list[Any]) -> list[Any]:
    out: list[Any] = [len(s), max(map(len, s.steps))]
    with np.errstate(all="ignore"):
        for step, row in zip(s.steps, padded(s.steps), strict=True):
            out += [2 * len(step) - 1, *(float(p(c)) for c in row for p in precisions)]
    return out


def assert_compiles(kind: str, arrays: dict[str, Any], command: list[str], ending: str, tmp_path):
    headers, expected = {}, []
    for k, s in enumerate(CASES.values()):
        # Headers of equal names share a guard, and then only the first counts.
        text = dataclasses.replace(s, name=f"{s.name} {k}").to_code(kind)
        (tmp_path / f"s{k}.h").write_text(text, encoding="utf-8")
        headers[f"s{k}.h"] = (identifier(text), list(arrays))
        expected += expected_output(s, list(arrays.values()))
    out = compile_and_run(command, main_program(headers), tmp_path, ending)
    got = [float.fromhex(v) if "x" in v else int(v) for v in out]
    assert list(map(repr, got)) == list(map(repr, expected))


def test_c(tmp_path):
    cc = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if cc is None:
        pytest.skip("no C compiler")
    arrays = {"": float, "_float": np.float32}
    assert_compiles("c", arrays, [cc, "-std=c99"], "c", tmp_path)


def test_cuda_as_cpp(tmp_path):
    cpp = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if cpp is None:
        pytest.skip("no C++ compiler")
    command = [cpp, "-std=c++17", "-D__constant__="]
    assert_compiles("cuda", {"": np.float32}, command, "cpp", tmp_path)


def test_cuda(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no CUDA compiler")
    text = dataclasses.replace(MIXED, steps=((1.5, -0.375),)).to_code("cuda")
    (tmp_path / "s.h").write_text(text, encoding="utf-8")
    (tmp_path / "main.cu").write_text(
        '#include "s.h"\n__global__ void f(float *x, int k) {\n'
        "  x[0] = x[0] * polarlib_mixed[0][1];\n  x[1] = polarlib_mixed[k][k];\n"
        "  x[2] = polarlib_mixed_degree[k];\n}\n",
        encoding="utf-8",
    )
    command = [nvcc, "-ptx", "-Werror", "all-warnings", "main.cu", "-o", "main.ptx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ptx = (tmp_path / "main.ptx").read_text(encoding="utf-8")
    literal = struct.pack(">f", -0.375).hex().upper()
    assert f"0f{literal}" in ptx  # a constant index is folded
    assert "ld.const" in ptx  # and any other one reads constant memory


def test_coefficients_beyond_single_precision():
    s = Schedule(steps=[(1e39,), (1e-39,)], lower=0.5)
    for kind in ("c", "cuda"):
        with pytest.raises(ValueError, match=r"1e\+39.*float32"):
            s.to_code(kind)
    assert ast.literal_eval(s.to_code("python")) == s.steps
    assert "10^{39}" in s.to_code("latex")


def test_identifiers():
    for name in NASTY:
        for kind in ("c", "cuda"):
            found = identifier(named(name).to_code(kind))
            assert re.fullmatch(r"POLARLIB_[A-Z0-9]+(_[A-Z0-9]+)*", found)


def latex_numbers(row: str) -> list[float]:
    cells = re.findall(r"\$(-?[\d.]+)(?: \\times 10\^\{(-?\d+)\})?\$", row)
    return [float(f"{digits}e{exponent or 0}") for digits, exponent in cells]


def assert_latex(s: Schedule) -> None:
    lines = s.to_code("latex").splitlines()
    comment = [line for line in lines if line.startswith("%")]
    body = lines[len(comment) :]
    assert any("booktabs" in line for line in comment)
    assert (body[0], body[-1]) == (r"\begin{table}", r"\end{table}")
    text = "\n".join(body)
    # Nothing but control words and symbols, with braces in balance.
    depth = 0
    bare = re.sub(r"\\[a-zA-Z]+|\\[^a-zA-Z]", "", text)
    for c in bare:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0
    caption = re.search(r"\\caption\{(.*)\n(.*)\}\n  \\label\{tab:[a-z0-9-]+\}\n", text)
    escaped = re.sub(r"\$[^$]*\$|\\[a-zA-Z]+|\\.", "", caption[1] + caption[2])
    assert not set(escaped) & set("#$%&_^~<>|\\")
    assert text.count("\\begin{") == text.count("\\end{") == 2

    start, end = body.index(r"    \midrule"), body.index(r"    \bottomrule")
    rows = body[start + 1 : end]
    columns = max(map(len, s.steps)) + 1
    assert rf"\begin{{tabular}}{{{'r' * columns}}}" in text
    assert body[start - 1].count("&") == columns - 1
    for k, (row, step) in enumerate(zip(rows, s.steps, strict=True), 1):
        assert row.startswith(f"    {k} & ")
        assert row.endswith(r" \\")
        assert row.count("&") == columns - 1
        assert [*map(bits, latex_numbers(row))] == [*map(bits, step)]


def test_latex(case):
    assert_latex(case)


@settings(max_examples=60)
@given(schedules())
def test_any_schedule_as_text(s):
    assert repr(ast.literal_eval(s.to_code("python"))) == repr(s.steps)
    assert_latex(s)
    for kind in ("c", "cuda"):
        text = s.to_code(kind)
        about = text[: text.index("#ifndef")]
        assert about.index("*/") == len(about) - 3  # the comment ends where it should
        assert about.count("/*") == 1
        # Every literal of a float array is one of single precision.
        arrays = re.findall(r" float \w+(?:\[\d+\]){2} = \{\n(.*?)\n\};", text, flags=re.DOTALL)
        literals = re.findall(r"0x[^,}]*", " ".join(arrays))
        assert len(literals) == sum(map(len, padded(s.steps)))
        assert all(literal.endswith("f") for literal in literals)


@pytest.mark.parametrize("field", ["name", "source"])
def test_name_and_source_are_text(field):
    with pytest.raises(ValueError, match="text, got"):
        Schedule(steps=[(1.5, -0.5)], lower=0.5, **{field: 5})
