"""A folder with a matrix, for every test of the command line."""

from __future__ import annotations

import numpy as np
import pytest
import shell


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", shell.A)
    return tmp_path
