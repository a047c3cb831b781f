"""The command line in this process: what a call prints, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
from typer.testing import CliRunner

import polarlib
from polarlib import cli

A = np.random.default_rng(0).standard_normal((6, 4))
# What the surroundings of a test run might set.
PLAIN = dict.fromkeys(("COLUMNS", "POLARLIB_TRACEBACK", "NO_COLOR", "FORCE_COLOR"))
ONE = "digits_head_late"  # the smallest bundled matrix
POLAR = polarlib.schedules(target="polar")


def invoke(*args, **env):
    return CliRunner(env=PLAIN | env).invoke(cli.app, [str(arg) for arg in args])


def done(*args, code=0, **env):
    """The standard output of a command that ends as it should."""
    result = invoke(*args, **env)
    assert result.exit_code == code, result.output
    if code == 0:
        assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert "…" not in result.stdout
    return result.stdout


def refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def document(*args, code=0):
    """The one JSON document that a command prints, and nothing else."""
    text = done(*args, "--json", code=code)
    assert text.startswith("{")
    return json.loads(text, parse_constant=refuse)


def refused(*args, code=2):
    """The one line of a command that fails."""
    result = invoke(*args)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr.startswith("polarlib: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    return result.stderr


def run(*args, **rest):
    """A process of its own, as users start it."""
    command = [sys.executable, "-m", "polarlib", *args]
    env = {k: v for k, v in os.environ.items() if k not in PLAIN}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, **rest)
