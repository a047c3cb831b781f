"""Costs of kernels: the shipped table, interpolation, and files of users."""

from __future__ import annotations

import math
import re
import time

import numpy as np
import pytest

import polarlib
from polarlib.design import cost_tables
from polarlib.design.cost_tables import (
    KERNELS,
    kernel_costs,
    read_costs,
    svd_costs_less,
    symmetric_cost,
)
from polarlib.testing import assert_polar, with_singular_values

LIBRARIES = ("numpy", "torch", "jax", "cupy", "array_api_strict")
OTHERS = [name for name in KERNELS if name != "matmul"]


@pytest.fixture(autouse=True)
def no_file(monkeypatch):
    monkeypatch.delenv(cost_tables.VARIABLE, raising=False)


def text(sizes="[100, 200]", values="[2.0, 4.0]", table="numpy.cpu", drop="", extra=""):
    """A file of costs; `drop` and `extra` make it wrong."""
    lines = [f"[{table}]", "measured = true", 'source = "a test"', f"sizes = {sizes}"]
    for name in cost_tables.FORMATS:
        lines += [f"[{table}.{name}]", *(f"{kernel} = {values}" for kernel in OTHERS)]
    return "\n".join(x for x in [*lines, extra] if not drop or not x.startswith(drop))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a file and name it in the environment."""

    def write(contents):
        path = tmp_path / f"costs-{len(list(tmp_path.iterdir()))}.toml"
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        monkeypatch.setenv(cost_tables.VARIABLE, str(path))
        return path

    return write


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("format_name", cost_tables.FORMATS)
@pytest.mark.parametrize("device", cost_tables.DEVICES)
def test_every_kernel_has_a_positive_cost_at_every_size(library, format_name, device):
    for n in (1, 64, 100, 700, 2048, 10**6):
        found = kernel_costs(library, format_name, n, device=device)
        assert list(found) == list(KERNELS)
        assert found["matmul"] == 1
        assert all(0 < cost < math.inf for cost in found.values())


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("format_name", cost_tables.FORMATS)
@pytest.mark.parametrize("device", cost_tables.DEVICES)
def test_costs_are_in_the_order_of_their_operations(library, format_name, device):
    for n in (256, 512, 1024, 2048):
        found = kernel_costs(library, format_name, n, device=device)
        assert found["elementwise"] < found["gram"] < found["qr"] < found["qr_stack"]
        assert found["cholesky"] < found["qr"] < found["svd"]
        assert found["cholesky"] < found["inverse"] < found["svd"]
        assert found["eigh"] < found["svd"]
    small, large = (kernel_costs(library, format_name, n, device=device) for n in (64, 1024))
    for passes in ("elementwise", "lanczos"):  # n^2 against n^3
        assert large[passes] < small[passes] / 3


def test_interpolation_is_linear_in_log_n_and_constant_beyond(own):
    own(text(sizes="[100, 400, 1600]", values="[2.0, 5.0, 3.0]"))

    def cost(n):
        found = kernel_costs("numpy", "float64", n)
        assert len({found[name] for name in OTHERS}) == 1
        return found["svd"]

    assert [cost(n) for n in (100, 400, 1600)] == [2.0, 5.0, 3.0]
    assert cost(200) == pytest.approx(3.5, rel=1e-14)
    assert cost(800) == pytest.approx(4.0, rel=1e-14)
    assert cost(1) == cost(99) == 2.0
    assert cost(1601) == cost(10**9) == 3.0


@pytest.mark.parametrize(
    "table", ["numpy.cpu", "torch.cpu", "jax.cpu", "generic.cpu", "generic.gpu"]
)
def test_the_shipped_table_is_met_exactly_at_its_sizes(table):
    library, device = table.split(".")
    shipped = cost_tables._shipped()[library][device]
    assert {64, 128, 256, 512, 1024, 2048} <= set(shipped["sizes"])
    for format_name in cost_tables.FORMATS:
        for i, n in enumerate(shipped["sizes"]):
            found = kernel_costs(library, format_name, n, device=device)
            assert found == {"matmul": 1.0} | {k: shipped[format_name][k][i] for k in OTHERS}


def test_the_shipped_file_says_what_was_measured():
    for library, devices in cost_tables._shipped().items():
        for device, table in devices.items():
            assert table["measured"] == (device == "cpu")
            if table["measured"]:
                name = "array_api_strict" if library == "generic" else library
                command = f"polarlib bench --calibrate --library {name}; "
                assert table["source"].startswith(command)
            else:
                assert table["source"].startswith("not measured: ")


def test_the_counted_table_follows_its_formula():
    table = cost_tables._shipped()["generic"]["gpu"]
    rate, band = map(float, re.findall(r"([\d.]+) (?:Tflop|GB)/s", table["source"]))
    launch = float(re.search(r"(\d+) microseconds", table["source"])[1]) * 1e-6
    rules = {
        name: terms
        for names, *terms in re.findall(
            r"([a-z_, ]+?) ([\dn/]+), ([\dn/]+), ([\dn/]+)", table["source"]
        )
        for name in names.strip(" ,").split(", ")
    }
    assert set(rules) == set(KERNELS) - {"matmul"} | {"product"}

    def seconds(terms, n, width):
        flops, passes, launches = (eval(re.sub(r"(\d)n", r"\1*n", t), {"n": n}) for t in terms)
        moved = passes * width * n * n / (band * 1e9)
        return flops * n**3 / (rate * 1e12) + moved + launches * launch

    for format_name, width in (("float32", 4), ("float64", 8)):
        for i, n in enumerate(table["sizes"]):
            product = seconds(rules["product"], n, width)
            for kernel in OTHERS:
                expected = seconds(rules[kernel], n, width) / product
                assert table[format_name][kernel][i] == pytest.approx(expected, rel=6e-3)


def test_libraries_without_a_table_have_the_generic_one():
    generic = kernel_costs("generic", "float64", 300)
    assert kernel_costs("dask", "float64", 300) == generic
    assert kernel_costs("numpy", "float64", 300) != generic
    on_gpu = kernel_costs("generic", "float64", 300, device="gpu")
    assert kernel_costs("cupy", "float64", 300) == on_gpu != generic
    assert kernel_costs("torch", "float64", 300, device="gpu") == on_gpu


def test_narrow_formats_have_the_costs_of_what_carries_them():
    for name in ("bfloat16", "float16", "tf32", "float8_e4m3"):
        assert kernel_costs("torch", name, 300) == kernel_costs("torch", "float32", 300)


def test_the_answer_is_the_callers_own():
    kernel_costs("numpy", "float64", 256)["svd"] = 0.0
    assert kernel_costs("numpy", "float64", 256)["svd"] > 1
    assert kernel_costs("numpy", "float64", np.int64(256)) == kernel_costs("numpy", "float64", 256)


@pytest.mark.parametrize(
    ("arguments", "device", "said"),
    [
        (("numpy", "float65", 8), "cpu", "float65.*float64"),
        (("numpy", "float64", 0), "cpu", "n must be an integer of at least 1, got 0"),
        (("numpy", "float64", math.nan), "cpu", "n must be an integer of at least 1, got nan"),
        (("numpy", "float64", 8), "cuda", "device must be .cpu. or .gpu."),
    ],
)
def test_wrong_arguments(arguments, device, said):
    with pytest.raises(ValueError, match=said):
        kernel_costs(*arguments, device=device)


def test_an_own_file_goes_before_the_shipped_one(own, monkeypatch):
    shipped = {name: kernel_costs(name, "float64", 256) for name in ("numpy", "torch")}
    own(text(values="[7, 7.0]"))
    assert kernel_costs("numpy", "float64", 256)["svd"] == 7
    assert kernel_costs("torch", "float64", 256) == shipped["torch"]
    own(text(table="torch.gpu", values="[9, 9.0]"))
    assert kernel_costs("torch", "float64", 256, device="gpu")["svd"] == 9
    assert kernel_costs("torch", "float64", 256) == shipped["torch"]
    assert kernel_costs("numpy", "float64", 256) == shipped["numpy"]
    for none in ("", None):
        if none is None:
            monkeypatch.delenv(cost_tables.VARIABLE)
        else:
            monkeypatch.setenv(cost_tables.VARIABLE, none)
        assert kernel_costs("numpy", "float64", 256) == shipped["numpy"]


def by_half(values="[0.8, 0.6]", name="bfloat16"):
    return text(table="torch.gpu") + f"\n[torch.gpu.symmetric]\n{name} = {values}"


def test_symmetric_products_cost_what_was_measured(own):
    for library in LIBRARIES:
        assert symmetric_cost(library, "bfloat16", 100, device="gpu") == math.inf
    own(by_half())
    costs = [symmetric_cost("torch", "bfloat16", n, device="gpu") for n in (50, 100, 200, 400)]
    assert costs == [0.8, 0.8, 0.6, 0.6]
    between = symmetric_cost("torch", "bfloat16", 141, device="gpu")
    assert between == pytest.approx(0.7, abs=1e-2)
    for other in (("torch", "float16"), ("torch", "float32"), ("cupy", "bfloat16")):
        assert symmetric_cost(*other, 100, device="gpu") == math.inf
    assert symmetric_cost("torch", "bfloat16", 100) == math.inf  # on the processor


WRONG = {
    "symmetric": (by_half("[0.5]"), "torch.gpu.symmetric.bfloat16 must be a list of 2 positive"),
    "symmetric format": (by_half(name="half"), "unknown key torch.gpu.symmetric.half"),
    "symmetric table": (
        text(table="torch.gpu").replace("sizes", "symmetric = 1\nsizes"),
        "torch.gpu.symmetric must be a table, got 1",
    ),
    "not toml": ("[numpy", "is not TOML"),
    "not text": (b"\xff\xfe\x00", "is not text in UTF-8"),
    "empty": ("", "the file must be a table such as .numpy.cpu. at least, got {}"),
    "no table": ("numpy = 1", "numpy must be a table, got 1"),
    "empty library": ("[numpy]", "numpy must be a table, got {}"),
    "device": (text(table="numpy.cuda"), "unknown key numpy.cuda; .*'cpu', 'gpu'"),
    "device's value": ("[numpy]\ncpu = 3", "numpy.cpu must be a table, got 3"),
    "no source": (text(drop="source"), "numpy.cpu.source is missing"),
    "source": (text(drop="source").replace("sizes", "source = 1\nsizes"), "source must be text"),
    "measured": (text().replace("true", "1"), "numpy.cpu.measured must be true or false, got 1"),
    "sizes": (
        text(sizes="[200, 100]"),
        r"sizes must be a list of ascending positive.*\[200, 100\]",
    ),
    "size 0": (text(sizes="[0, 100]"), "numpy.cpu.sizes must be"),
    "sizes twice": (text(sizes="[100, 100]"), "numpy.cpu.sizes must be"),
    "no sizes": (text(sizes="[]", values="[]"), "numpy.cpu.sizes must be"),
    "text for sizes": (text(sizes='"100"'), "numpy.cpu.sizes must be"),
    "a kernel": (text(drop="svd"), "numpy.cpu.float32.svd is missing"),
    "a format": (text().replace("numpy.cpu.float64", "numpy.cpu.float16"), "key numpy.cpu.float16"),
    "another kernel": (text(extra="schur = [1, 1]"), "unknown key numpy.cpu.float64.schur"),
    "matmul": (text(extra="matmul = [1, 1]"), "unknown key numpy.cpu.float64.matmul"),
    "length": (text(values="[1.0]"), "float32.gram must be a list of 2 positive numbers"),
    "negative": (text(values="[1.0, -1.0]"), r"float32.gram must be .*got \[1.0, -1.0\]"),
    "zero": (text(values="[1.0, 0]"), "float32.gram must be a list of 2 positive numbers"),
    "inf": (text(values="[1.0, inf]"), "float32.gram must be a list of 2 positive numbers"),
    "nan": (text(values="[1.0, nan]"), "float32.gram must be a list of 2 positive numbers"),
    "bool": (text(values="[1.0, true]"), "float32.gram must be a list of 2 positive numbers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_malformed_files(own, what):
    contents, said = WRONG[what]
    path = own(contents)
    for attempt in (lambda: read_costs(path), lambda: kernel_costs("numpy", "float64", 8)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{said}"):
            attempt()


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv(cost_tables.VARIABLE, str(tmp_path / "nowhere.toml"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        kernel_costs("numpy", "float64", 8)


def test_the_variable_is_named(tmp_path, monkeypatch):
    for path, text in ((tmp_path, "is a folder"), (tmp_path / "no", "No such file")):
        monkeypatch.setenv("POLARLIB_COSTS", str(path))
        with pytest.raises(OSError, match=f"{text}.*POLARLIB_COSTS names"):
            kernel_costs("numpy", "float64", 100)


# -- the one cost that is timed ------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch):
    """A machine whose SVDs cost so many times what the table says; how often that was asked."""
    asked = []

    def machine(factor):
        def found(format_name):
            asked.append(format_name)
            return factor

        monkeypatch.setattr(cost_tables, "_svds_here", found)
        return asked

    monkeypatch.delenv("POLARLIB_COSTS", raising=False)
    return machine


def test_an_svd_is_timed_only_where_the_choice_is_near(timed):
    asked = timed(2.0)
    costs = {"svd": 20.0}
    assert not svd_costs_less(costs, 11.0, "float64")
    assert svd_costs_less(costs, 48.0, "float64")
    assert svd_costs_less(costs, math.inf, "float64")
    assert asked == []
    assert not svd_costs_less(costs, 30.0, "bfloat16")
    assert asked == ["float32"]


@pytest.mark.parametrize(("factor", "expected"), [(0.5, True), (1.0, False), (2.0, False)])
def test_a_machine_with_faster_svds_takes_them(factor, expected, timed):
    timed(factor)
    assert svd_costs_less({"svd": 20.0}, 18.0, "float64") == expected


def test_nothing_is_timed_if_costs_are_named(timed, monkeypatch):
    asked = timed(0.5)
    costs = kernel_costs("numpy", "float64", 300)
    monkeypatch.setenv("POLARLIB_COSTS", "shipped")
    assert kernel_costs("numpy", "float64", 300) == costs
    assert not svd_costs_less({"svd": 20.0}, 18.0, "float64")
    assert asked == []


def test_what_is_timed_stays_for_the_process():
    """The same number for each thread, within the bounds, and soon found."""
    cost_tables._svds_here.cache_clear()
    start = time.perf_counter()
    first = cost_tables._svds_here("float64")
    assert time.perf_counter() - start < 1.0  # 5 ms, on a machine that does nothing else
    assert 1 / cost_tables.FACTOR <= first <= cost_tables.FACTOR
    assert cost_tables._svds_here("float64") == first


def test_an_ill_conditioned_matrix_goes_by_it(timed):
    """Whatever is chosen is right, and its reason is given."""
    a = with_singular_values(np.geomspace(1, 1e-9, 300), 300, 300)
    methods = {}
    for factor in (0.01, 100.0):
        timed(factor)
        result = polarlib.polar(a)
        assert_polar(a, result.unitary, result.hermitian)
        methods[factor] = result.method
    assert methods[0.01] == "svd"


def test_a_calibration_has_the_seconds_of_a_product(tmp_path):
    from polarlib import bench

    path = tmp_path / "costs.toml"
    bench.add_costs(path, bench.calibrate("numpy", sizes=[8, 128], seconds=0.01))
    table = read_costs(path)["numpy"]["cpu"]["float64"]
    small, large = table[cost_tables.SECONDS]
    assert 0 < small < large < 1
    found = cost_tables.machine_costs(path, "float64", 32)
    assert small < found.seconds < large
    assert set(found.kernels) == set(KERNELS)
    # Sizes of another call join those that are there, their seconds too.
    bench.add_costs(path, bench.calibrate("numpy", sizes=[16], seconds=0.01))
    table = read_costs(path)["numpy"]["cpu"]
    assert table["sizes"] == [8, 16, 128]
    assert len(table["float32"][cost_tables.SECONDS]) == 3
