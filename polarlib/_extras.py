"""Packages that only an extra installs, such as matplotlib by ``polarlib[plot]``."""

from __future__ import annotations

import importlib


def require(subject: str, extra: str, *packages: str) -> None:
    """Import packages, or raise an error that names the extra which installs them.

    Parameters
    ----------
    subject : str
        Part of polarlib that needs the packages, as the message names it.
    extra : str
        Name of the extra in pyproject.toml.
    *packages : str
        Names of the packages.

    Raises
    ------
    ImportError
        If one of them is not installed.

    Examples
    --------
    >>> require("polarlib.sound", "sound", "loudspeaker")
    Traceback (most recent call last):
    ImportError: polarlib.sound needs loudspeaker; install polarlib[sound]
    """
    try:
        for package in packages:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        # Another name: the package is there, and damaged. "dask" is missing for "dask.array".
        if not any(f"{package}.".startswith(f"{error.name}.") for package in packages):
            raise
        text = f"{subject} needs {' and '.join(packages)}; install polarlib[{extra}]"
        raise ImportError(text) from None
