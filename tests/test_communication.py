"""communication(): published numbers, collectives of compiled programs, data and page."""

from __future__ import annotations

import collections
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import polarlib
from polarlib import communication, design, orthogonalize
from polarlib._communication import LAYOUTS, WIDTHS
from polarlib.arrays.formats import FORMATS
from polarlib.updates import dion

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS, EVIDENCE = ROOT / "benchmarks", ROOT / "docs" / "evidence"
LARGE = (16384, 4096)
LIMIT = 240  # seconds until programs that hang are ended
LINK = {"latency": 1e-5, "bandwidth": 5e10, "flops": 4e14}
needs_benchmarks = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks not installed")


def needed(layout, n):
    return {
        "block_periodic": {"period": 5},
        "dion": {"rank": n // 4},
        "dion2": {"fraction": 0.25},
    }.get(layout, {})


def of(layout, shape=LARGE, devices=8, **how):
    return communication(shape, layout=layout, devices=devices, **needed(layout, min(shape)), **how)


# -- formulas --------------------------------------------------------------------------------

# Elements over m n for 16384 x 4096 on 8 devices, q = 5, P = 5, r = 1024, a quarter of the rows.
ELEMENTS = {
    "replicated": 0,
    "owner": 0,
    "block": 0,
    "gather": 0.875,
    "all_to_all": 0.21875,
    "rows": 2.1875,
    "block_periodic": 0.175,
    "dion": 0.546875,
    "dion2": 0.0546875,
}


def test_elements_of_every_layout():
    assert set(ELEMENTS) == set(LAYOUTS)
    for layout, part in ELEMENTS.items():
        work = of(layout, precision="float64", form="plain")
        assert work.bytes == pytest.approx(8 * part * math.prod(LARGE), rel=1e-14), layout
        assert work.seconds is None
    assert of("rows", (4096, 4096), precision="float64", form="plain").bytes == 8 * 8.75 * 4096**2


@pytest.mark.parametrize("precision", FORMATS)
def test_messages_have_the_width_of_their_format(precision):
    width = int("".join(c for c in precision.split("_")[0] if c.isdigit())) // 8
    width = {"tf32": 4}.get(precision, width)
    of_sums = 8 if precision == "float64" else 4
    assert WIDTHS[precision] == width
    assert of("gather", precision=precision).bytes == width * 0.875 * math.prod(LARGE)
    work = of("rows", precision=precision)
    sums = 1 + len(design.restarts(polarlib.default_schedule(precision), precision))
    assert (work.collectives, work.bytes) == (sums, sums * of_sums * 2 * 0.875 * 4096**2)
    plain = of("rows", precision=precision, form="plain", steps=7)
    assert (plain.collectives, plain.bytes) == (7, 7 * of_sums * 2 * 0.875 * 4096**2)


def test_sums_send_less_than_a_gathering_above_twice_their_number():
    for steps, ratio in ((5, 10), (1, 2), (3, 6)):
        for form in ("plain", "gram"):
            how = {"precision": "float64", "steps": steps, "form": form}
            sums = of("rows", **how).collectives
            assert sums == (steps if form == "plain" else 1 + len(restarts(steps)))
            above, below = ((int(2 * sums) + k) * 64 for k in (1, -1))
            assert of("rows", (above, 64), **how).bytes < of("gather", (above, 64), **how).bytes
            assert of("rows", (below, 64), **how).bytes > of("gather", (below, 64), **how).bytes
            if form == "plain":
                assert 2 * sums == ratio


def restarts(steps):
    return design.restarts(polarlib.default_schedule("float64", steps=steps), "float64")


def test_operations_of_muonbp():
    """16384 x 53248 in 8 blocks: 2 (2 n m^2 + m^3) in each step; published 2.36 and 9.06."""
    whole = communication((16384, 53248), layout="replicated", devices=8, form="plain").flops
    assert whole == 5 * 2 * (2 * 53248 * 16384**2 + 16384**3)
    columns = communication((16384, 53248), layout="block", devices=8, form="plain").flops
    rows = communication((2048, 53248), layout="replicated", devices=1, form="plain").flops
    assert [whole / (8 * columns), whole / (8 * rows)] == pytest.approx(
        [2.36072, 9.05660], abs=5e-6
    )


def test_operations_of_every_layout():
    whole = of("replicated").flops
    assert of("gather").flops == whole
    assert of("owner").flops == of("all_to_all").flops == whole / 8
    mixed = (whole + 4 * of("block").flops) / 5
    assert of("block_periodic").flops == pytest.approx(mixed, rel=1e-14)
    m, n, r = *LARGE, 1024
    assert of("dion").flops == 8 * m * n * r
    quarter = communication((m // 4, n), layout="replicated", devices=1).flops
    assert of("dion2").flops == quarter / 8
    # The products with the matrix are divided: 10 of 2 m n^2 in the plain form, 5 of 2 n^3 are not.
    assert of("rows", form="plain").flops == 10 * 2 * m * n * n / 8 + 5 * 2 * n**3
    # bfloat16 restarts after 3 steps: 8 products with the matrix, 5 + 3 n x n ones.
    assert of("rows").flops == 8 * 2 * m * n * n / 8 + 8 * 2 * n**3


def test_operations_are_those_of_the_functions(torch):
    counter = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode

    def counted(f, *arrays):
        with counter(display=False) as mode:
            f(*arrays)
        return mode.get_total_flops()

    for shape, kind in (((64, 16), "bfloat16"), ((16, 64), "float32"), ((32, 32), "float64")):
        g = torch.randn(shape).to(getattr(torch, kind))
        for form in ("plain", "gram", "auto"):
            work = communication(shape, layout="gather", devices=4, form=form, precision=kind)
            assert counted(lambda x, form=form: orthogonalize(x, form=form), g) == work.flops
        work = communication(shape, layout="dion", devices=4, rank=4)
        assert counted(dion, 0 * g, g, torch.randn(shape[1], 4).to(g.dtype)) == work.flops


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sides_uneven_parts_and_one_device(layout):
    assert of(layout) == of(layout, LARGE[::-1])
    alone = of(layout, devices=1)
    assert (alone.bytes, alone.collectives) == (0, 0)
    if layout not in ("dion", "dion2"):
        assert alone.flops == of("replicated").flops
    odd = of(layout, (65, 8), devices=4, form="plain")
    if layout == "block":
        parts = [len(part) for part in np.array_split(np.arange(65), 4)]
        each = [communication((k, 8), layout="owner", devices=1, form="plain").flops for k in parts]
        assert odd.flops == sum(each) / 4
    assert odd.bytes == of(layout, (8, 65), devices=4, form="plain").bytes


def test_seconds():
    named = collections.namedtuple("Link", LINK)(**LINK)
    for layout in LAYOUTS:
        work = of(layout, link=LINK)
        wanted = work.collectives * 1e-5 + work.bytes / 5e10 + work.flops / 4e14
        assert work.seconds == pytest.approx(wanted, rel=1e-14)
        assert of(layout, link=named) == work
        assert work[:3] == of(layout)[:3]
    assert of("owner", link=LINK | {"latency": 0}).seconds == of("owner").flops / 4e14


# -- wrong arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "column"}, r"unknown layout 'column'; .*'replicated', 'owner', 'gather'"),
        ({"layout": None}, "unknown layout None"),
        ({"devices": 0}, "devices must be an integer of at least 1, got 0"),
        ({"devices": 2.0}, r"devices must be an integer .* got 2\.0"),
        ({"shape": (64,)}, "shape must be two integers"),
        ({"shape": (64, 0)}, "shape must be an integer of at least 1, got 0"),
        ({"shape": (2, 64, 16)}, "shape must be two integers"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"form": "gramm"}, "form must be 'auto', 'plain' or 'gram'"),
        ({"precision": "bf16"}, "unknown number format 'bf16'; did you mean 'bfloat16'"),
        ({"period": 5}, "period=5 is for layout='block_periodic', got layout='rows'"),
        ({"rank": 5}, "rank=5 is for layout='dion', got layout='rows'"),
        ({"layout": "dion2", "period": 5}, "is for layout='block_periodic', got layout='dion2'"),
        ({"layout": "block_periodic"}, "layout='block_periodic' needs period"),
        ({"layout": "block_periodic", "period": 0}, "period must be an integer of at least 1"),
        ({"layout": "dion"}, "layout='dion' needs rank"),
        ({"layout": "dion", "rank": 17}, "rank must be at most 16, got 17"),
        ({"layout": "dion2"}, "layout='dion2' needs fraction"),
        ({"layout": "dion2", "fraction": 0}, "fraction must be a number above 0 and at most 1"),
        ({"layout": "dion2", "fraction": 1.5}, "fraction must be a number above 0 and at most 1"),
        ({"layout": "block", "devices": 65}, "devices must be at most 64, got 65"),
        ({"link": {"latency": 1, "bandwidth": 1}}, "add 'flops'"),
        ({"link": LINK | {"speed": 1}}, "link has an unknown name 'speed'"),
        ({"link": LINK | {"latency": -1}}, r"link\['latency'\] must be a number of at least 0"),
        ({"link": LINK | {"bandwidth": 0}}, r"link\['bandwidth'\] must be a number above 0"),
        ({"link": LINK | {"flops": "1"}}, r"link\['flops'\] must be a number above 0, got '1'"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        communication(**{"shape": (64, 16), "layout": "rows", "devices": 2, **change})


def test_a_link_of_another_type():
    with pytest.raises(TypeError, match=r"link must be a mapping or named tuple of latency, band"):
        of("rows", link=(1, 2, 3))


# -- programs, data and page -----------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("communication")


@needs_benchmarks
@pytest.mark.parametrize(
    ("library", "devices", "shape", "dtype", "layouts"),
    [
        ("jax", 4, (16, 8), "float32", ["rows", "dion"]),
        pytest.param("jax", 3, (6, 24), "float32", [], marks=pytest.mark.slow),
        pytest.param("torch", 2, (16, 8), "bfloat16", [], marks=pytest.mark.slow),
    ],
)
def test_collectives_of_programs(script, library, devices, shape, dtype, layouts):
    pytest.importorskip(library)
    m, n = shape
    command = [sys.executable, str(script.PROGRAMS), library, str(devices), f"{m}x{n}", dtype]
    done = subprocess.run(
        [*command, *layouts], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {r["layout"] for r in rows} == set(layouts or LAYOUTS)
    case = {"devices": devices, "shape": f"{m}x{n}", "dtype": dtype}
    for row in rows:
        assert script.agrees(row | case), (row, script.predicted(row | case))


@needs_benchmarks
def test_data_and_page(script):
    data = script.load(script.DATA)
    # else: python benchmarks/communication.py --json docs/data/communication.json
    assert data["predicted"] == script.predictions()
    assert data["crossings"] == script.crossings()
    assert data["operations"] == script.operations()
    cases = {(r["library"], r["devices"], r["shape"], r["dtype"]) for r in data["counted"]}
    assert cases == set(script.CASES)
    assert [row for row in data["counted"] if not script.agrees(row)] == []
    if not EVIDENCE.is_dir():
        pytest.skip("the pages are not installed")
    page = (EVIDENCE / "communication.md").read_text("utf-8")
    # else: python benchmarks/communication.py --markdown docs/evidence/communication.md
    for name, text in script.parts(data).items():
        assert f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->" in page, name


@needs_benchmarks
def test_hlo_is_parsed(script):
    """Tuples, gatherings, and collectives of single numbers; asynchronous ones are refused."""
    programs = importlib.import_module("communication_programs")
    text = """
      %r = f32[4,4]{1,0} all-reduce(%dot), channel_id=1
      %n = f32[2,1,1]{2,1,0} all-reduce(%x), channel_id=2
      %d = bf16[8,3]{1,0} all-gather(%y), dimensions={0}
      %t = (f32[1,4]{1,0}, f32[1,4]{1,0}) all-to-all(%a, %b), dimensions={0}
      %p = pred[] all-reduce(%q)
    """
    calls = programs.calls_of_hlo(text, 4)
    found = [(c.name, programs.sent(c, 4), c.numbers) for c in calls]
    assert found == [
        ("all-reduce", 2 * 0.75 * 64, False),
        ("all-reduce", 2 * 0.75 * 8, True),
        ("all-gather", 0.75 * 48, False),
        ("all-to-all", 0.75 * 32, False),
        ("all-reduce", 2 * 0.75 * 1, True),
    ]
    with pytest.raises(RuntimeError, match="asynchronous"):
        programs.calls_of_hlo(text.replace("all-gather(", "all-gather-start("), 4)
