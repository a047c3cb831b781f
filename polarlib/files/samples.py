"""The bundled gradients and momenta, and their metadata."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from typing import Any

import numpy as np

from polarlib._renamed import warn_renamed


def sample_matrices() -> dict[str, np.ndarray]:
    """Return real gradient and momentum matrices of two small networks, by name.

    Returns
    -------
    dict of str to ndarray
        Of dtype float32; :func:`sample_metadata` gives origin and properties of each.

    Examples
    --------
    >>> sample_matrices()["transformer_mlp_in_late"].shape
    (512, 128)
    """
    file = resources.files("polarlib").joinpath("data/gradients.npz")
    # Stored as float16 over a power of two, which keeps the entries normal numbers: half the size.
    with file.open("rb") as stream, np.load(stream) as archive:
        return {
            fact["name"]: archive[fact["name"]].astype(np.float32) * np.float32(fact["scale"])
            for fact in _metadata()["matrix"]
        }


def sample_metadata() -> dict[str, dict[str, Any]]:
    """Return the metadata of the bundled matrices.

    Returns
    -------
    dict of str to dict
        Layer, training step, rank, condition number, a description and so on, with the data that
        its network was trained on, their licence and attribution.

    Examples
    --------
    >>> sample_metadata()["transformer_mlp_in_late"]["description"]
    'The easiest one: a tall, well-conditioned matrix with a slowly decaying spectrum.'
    """
    metadata = _metadata()
    networks, shared = metadata["network"], ("data", "licence", "attribution")
    return {
        m["name"]: m | {key: networks[m["network"]][key] for key in shared}
        for m in metadata["matrix"]
    }


@functools.cache
def _metadata() -> dict[str, Any]:
    text = resources.files("polarlib").joinpath("data/gradients.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def shipped() -> dict[str, np.ndarray]:
    """Former name of :func:`sample_matrices`, until 0.3."""
    warn_renamed("files.shipped", "files.sample_matrices")
    return sample_matrices()


def stories() -> dict[str, dict[str, Any]]:
    """Former name of :func:`sample_metadata`, until 0.3, with `description` as `story` too."""
    warn_renamed("files.stories", "files.sample_metadata")
    return {name: m | {"story": m["description"]} for name, m in sample_metadata().items()}
