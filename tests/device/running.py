"""Start a module of this folder in an interpreter of its own, and say where it cannot run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
PACKAGES = {"cupy": "cupy-cuda13x", "torch": "torch", "jax": "jax"}


def need(library: str) -> str:
    """Skip, in words, where a library is not there as it is needed; its version."""
    try:
        version = metadata.version(PACKAGES[library])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGES[library]} is not installed")
    if library == "torch" and importlib.import_module("torch").version.cuda is None:
        pytest.skip("emulated CUDA tensors need torch's CUDA build")
    if library == "cupy" and not importlib.util.find_spec("nvidia"):
        pytest.skip("CuPy is installed without the libraries of CUDA: cupy-cuda13x[ctk]")
    return version


def run(module: str, *options: str) -> Any:
    """What a module of this folder prints as JSON."""
    return run_module(f"device.{module}", *options, "--json")


def run_module(module: str, *options: str) -> Any:
    """What a module of the tests prints as JSON, on the last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
