"""The bundled gradient matrices are what their TOML file says they are."""

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
NPZ = ROOT / "polarlib" / "data" / "gradients.npz"
TOML = NPZ.with_suffix(".toml")
README = ROOT / "analysis" / "gradients" / "README.md"

STORY = tomllib.loads(TOML.read_text(encoding="utf-8"))
FACTS = {fact["name"]: fact for fact in STORY["matrix"]}
EPS = np.finfo(np.float64).eps


@pytest.fixture(scope="module")
def arrays():
    with np.load(NPZ, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def singular_values(matrix):
    return np.linalg.svd(matrix.astype(np.float64), compute_uv=False)


def test_npz_and_toml_hold_the_same_names(arrays):
    assert len(FACTS) == len(STORY["matrix"])
    assert list(arrays) == list(FACTS)
    assert 6 <= len(arrays) <= 10


def test_files_are_small():
    assert NPZ.stat().st_size + TOML.stat().st_size < 1_000_000


def test_no_temporary_file_is_left():
    assert not list(NPZ.parent.glob(".*.tmp"))


def test_every_aspect_is_present(arrays):
    signs = {np.sign(rows - columns) for rows, columns in (a.shape for a in arrays.values())}
    assert signs == {-1, 0, 1}


def test_header_tells_how_to_repeat_the_run():
    assert STORY["command"].startswith("python analysis/gradients/train.py --out ")
    assert isinstance(STORY["seed"], int)
    assert {"python", "torch", "numpy", "scikit_learn"} <= set(STORY["versions"])
    assert {fact["network"] for fact in FACTS.values()} == set(STORY["network"])
    for network in STORY["network"].values():
        assert all(network[key] for key in ("data", "licence", "attribution", "training"))


@pytest.mark.parametrize("name", FACTS)
def test_array_is_as_told(arrays, name):
    matrix, fact = arrays[name], FACTS[name]
    assert matrix.dtype == np.float16
    assert list(matrix.shape) == fact["shape"]
    assert np.isfinite(matrix).all()
    assert np.sum(~matrix.any(axis=1)) == fact["zero_rows"]
    assert np.sum(~matrix.any(axis=0)) == fact["zero_columns"]
    assert fact["kind"] in {"gradient", "momentum"}
    assert fact["step"] >= 1
    assert fact["description"].endswith(".")
    assert name.startswith(fact["network"] + "_")


@pytest.mark.parametrize("name", FACTS)
def test_scale_is_a_power_of_two_that_suits_float16(arrays, name):
    matrix, scale = np.abs(arrays[name]), FACTS[name]["scale"]
    assert math.frexp(scale)[0] == 0.5
    assert 2**9 <= matrix.max() <= 2**10  # rounding may reach the upper end
    # A norm, not just an entry, is still a float16 number.
    assert np.linalg.norm(matrix.astype(np.float64)) < np.finfo(np.float16).max
    assert np.mean(matrix[matrix > 0] < np.finfo(np.float16).smallest_normal) < 0.05
    # float32 holds the original values exactly.
    original = matrix.astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(original / np.float32(scale), matrix)


@pytest.mark.parametrize("name", FACTS)
def test_spectrum_is_as_told(arrays, name):
    matrix, fact = arrays[name], FACTS[name]
    values, rank = singular_values(matrix), fact["rank"]
    assert np.sum(values > max(matrix.shape) * EPS * values[0]) == rank
    # The smallest singular value is known to about EPS times the largest, no better.
    tolerance = 1e-9 + 1e3 * EPS * fact["condition"]
    assert values[0] / values[rank - 1] == pytest.approx(fact["condition"], rel=tolerance)
    shares = values[:rank] / values[:rank].sum()
    effective = np.exp(-np.sum(shares * np.log(shares)))
    assert effective == pytest.approx(fact["effective_rank"], rel=1e-9)
    largest = values[0] / np.linalg.norm(matrix.astype(np.float64))
    assert largest == pytest.approx(fact["largest_over_frobenius"], rel=1e-9)


def test_descriptions_hold(arrays):
    # Not more directions than nonzero rows: bytes that do not occur.
    embedding = FACTS["transformer_embedding_early"]
    assert embedding["rank"] == embedding["shape"][0] - embedding["zero_rows"]
    assert embedding["rank"] < embedding["shape"][1]
    # Not more directions than images in the batch, or classes less one.
    assert FACTS["digits_hidden1_early"]["rank_before_rounding"] <= 32
    assert FACTS["digits_head_late"]["rank_before_rounding"] <= 9
    # One dominant direction early, and many late.
    early, late = (FACTS[f"transformer_attention_out_{when}"] for when in ("early", "late"))
    assert early["largest_over_frobenius"] > 0.99
    assert late["effective_rank"] > 10 * early["effective_rank"]
    # Rare bytes have small rows, but not zero rows.
    lengths = np.linalg.norm(arrays["transformer_head_late"].astype(np.float64), axis=1)
    assert 0 < 1e3 * lengths.min() < lengths.max()
    # The set spans easy and very hard cases.
    conditions = [fact["condition"] for fact in FACTS.values()]
    assert min(conditions) < 1e2
    assert max(conditions) > 1e8


@pytest.mark.skipif(not README.exists(), reason="the analysis folder is not installed")
@pytest.mark.parametrize("name", FACTS)
def test_readme_table_is_current(name):
    fact = FACTS[name]
    (line,) = [x for x in README.read_text(encoding="utf-8").splitlines() if f"| `{name}`" in x]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        f"`{name}`",
        fact["kind"],
        str(fact["step"]),
        "{} x {}".format(*fact["shape"]),
        str(fact["rank_before_rounding"]),
        str(fact["rank"]),
        f"{fact['condition']:.1e}",
        f"{fact['effective_rank']:.1f}",
        f"{fact['largest_over_frobenius']:.3f}",
    ]
