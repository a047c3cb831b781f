"""optax's own tests of its Muon, on ours: that they pass, and that they can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import optax_muon
import pytest
from conftest import library

HERE = Path(optax_muon.__file__).parent


@pytest.mark.slow  # JAX compiles for every shape
@pytest.mark.parametrize("wrong", [False, True])
def test_optax_passes_and_fails_a_wrong_function(wrong, tmp_path):
    library("jax")
    pytest.importorskip("optax")
    code = """if True:
        import sys
        import frame, polarlib
        right = polarlib.orthogonalize
        if sys.argv[1] == "True":
            polarlib.orthogonalize = lambda g, **how: 2 * right(g, **how) - g
        code, row = frame.run_one("optax_muon", None, ["-k", "orthogonal or newton or mixed"])
        open(sys.argv[2], "w").write(__import__("json").dumps(row))
        raise SystemExit(code)
    """
    out = tmp_path / "row.json"
    done = subprocess.run(
        [sys.executable, "-c", code, str(wrong), str(out)], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == wrong, done.stdout
    row = json.loads(out.read_text("utf-8"))
    assert row["polarlib"]["orthogonalize"] > 10 or wrong
    assert bool(row["failed"]) == wrong
