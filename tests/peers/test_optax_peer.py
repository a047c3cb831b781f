"""optax's own tests of its Muon, on ours: that they can fail; test_frame.py has that they pass."""

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
def test_optax_fails_a_wrong_function(tmp_path):
    library("jax")
    pytest.importorskip("optax")
    code = """if True:
        import json, sys
        import frame, polarlib
        right = polarlib.orthogonalize
        polarlib.orthogonalize = lambda g, **how: 2 * right(g, **how) - g
        code, row = frame.run_one("optax_muon", None, ["-k", "test_orthogonality or newton"])
        open(sys.argv[1], "w").write(json.dumps(row))
        raise SystemExit(code)
    """
    out = tmp_path / "row.json"
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    row = json.loads(out.read_text("utf-8"))
    assert row["failed"]
    assert all("orthogonality" in name or "newton" in name for name in row["failed"])
