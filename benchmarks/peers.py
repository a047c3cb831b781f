"""Orthogonalisations of other packages behind one signature, without any of their code.

    python benchmarks/peers.py [--peers FOLDER]

A package is found where it is installed, or as a checkout in a folder: FOLDER/dion,
FOLDER/Emerging-Optimizers, FOLDER/gram-newton-schulz, FOLDER/Muon. Without the option the folder is
that of the environment variable POLARLIB_PEERS.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

Array = Any

# The environment variable with the folder of checkouts.
FOLDER = "POLARLIB_PEERS"
# The package that is imported, and the name of its checkout's folder.
CHECKOUTS = {
    "dion": "dion",
    "emerging_optimizers": "Emerging-Optimizers",
    "gram_newton_schulz": "gram-newton-schulz",
    "muon": "Muon",
}
# Distributions with the version of a package, without a checkout.
DISTRIBUTIONS = {"emerging_optimizers": "emerging-optimizers"}
MUON = (3.4445, -4.7750, 2.0315)  # defaults of torch.optim.Muon and optax


class Peer(NamedTuple):
    """An orthogonalisation of another package.

    Attributes
    ----------
    name : str
        For tables.
    source : str
        Version or commit.
    library : {"torch", "jax"}
        Whose arrays it takes.
    takes : str
        dtype of the matrices that it is given; `precision` where it takes that.
    precision : str
        Format of its products.
    products : int
        Matrix products of the plain form of its iteration.
    function : callable
        Returns the factor of a matrix. It may overwrite its input, which the page reports.
    """

    name: str
    source: str
    library: str
    takes: str
    precision: str
    products: int
    function: Callable[[Array], Array]

    def given(self, a: np.ndarray) -> Array:
        """Array that the peer takes, from NumPy's; never the same memory."""
        if self.library == "torch":
            torch = importlib.import_module("torch")
            return torch.from_numpy(np.array(a)).to(getattr(torch, self.takes))
        return importlib.import_module("jax.numpy").asarray(a, dtype=self.takes)

    def result(self, a: np.ndarray) -> np.ndarray:
        """Factor of a NumPy matrix, in double precision."""
        q = self.function(self.given(a))
        if self.library == "torch":
            return q.double().numpy()
        return np.asarray(q).astype(np.float64)


def find(folder: Path | None = None) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that are here, and why each of the others is not.

    Parameters
    ----------
    folder : Path, optional
        Of checkouts.
    """
    if folder is None and FOLDER in os.environ:
        folder = Path(os.environ[FOLDER])
    peers: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name, adapter in ADAPTERS.items():
        try:
            peers |= {peer.name: peer for peer in adapter(folder)}
        except (ImportError, AttributeError) as error:
            missing[name] = str(error)
    return peers, missing


# -- where they are --------------------------------------------------------------------------


def _module(package: str, file: str, folder: Path | None) -> tuple[ModuleType, str]:
    """A single file of a package as a module, and which version it is.

    The file alone, since importing the whole package may take what this machine lacks.
    """
    checkout = None if folder is None else folder / CHECKOUTS[package]
    if checkout is not None and (checkout / file).is_file():
        root = checkout
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        source = _commit(root)
    else:
        spec = importlib.util.find_spec(package)
        # Scripts of this folder, such as muon.py, are not the package of their name.
        own = spec is not None and Path(spec.origin or "").parent == Path(__file__).resolve().parent
        if spec is None or spec.origin is None or own:
            raise ImportError(f"{package} is neither installed nor in the folder of checkouts")
        root = Path(spec.origin).parent
        root = root.parent if spec.submodule_search_locations else root
        source = _version(DISTRIBUTIONS.get(package, package))
    name = file.removesuffix(".py").replace("/", ".")
    if name in sys.modules:
        return sys.modules[name], source
    spec = importlib.util.spec_from_file_location(name, root / file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{root / file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module, source


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "unknown commit"


def _version(distribution: str) -> str:
    try:
        return f"version {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return "unknown version"


# -- adapters --------------------------------------------------------------------------------


def _torch_muon(folder: Path | None) -> Iterator[Peer]:
    module = importlib.import_module("torch.optim._muon")
    function = module._zeropower_via_newtonschulz  # the optimizer's own, private
    yield Peer(
        "torch.optim.Muon", _version("torch"), "torch", "bfloat16", "bfloat16", 15,
        lambda x: function(x, MUON, 5, 1e-7),
    )  # fmt: skip


def _muon(folder: Path | None) -> Iterator[Peer]:
    module, source = _module("muon", "muon.py", folder)
    yield Peer(
        "KellerJordan/Muon", source, "torch", "bfloat16", "bfloat16", 15,
        lambda x: module.zeropower_via_newtonschulz5(x, steps=5),
    )  # fmt: skip


def _dion(folder: Path | None) -> Iterator[Peer]:
    for label, file, name in (
        ("polar_express", "dion/polar_express.py", "polar_express"),
        ("newton_schulz", "dion/muon.py", "zeropower_via_newtonschulz5"),
    ):
        module, source = _module("dion", file, folder)
        function = getattr(module, name)
        yield Peer(f"dion, {label}", source, "torch", "bfloat16", "bfloat16", 15, function)


def _gram_newton_schulz(folder: Path | None) -> Iterator[Peer]:
    module, source = _module(
        "gram_newton_schulz", "gram_newton_schulz/gram_newton_schulz.py", folder
    )
    # Its products are always in float16; its torch path, its default restart.
    function = module.GramNewtonSchulz(ns_use_kernels=False, compile_kwargs=None)
    yield Peer("gram-newton-schulz", source, "torch", "bfloat16", "float16", 15, function)


def _emerging(folder: Path | None) -> Iterator[Peer]:
    file = "emerging_optimizers/orthogonalized_optimizers/muon_utils.py"
    module, source = _module("emerging_optimizers", file, folder)
    torch = importlib.import_module("torch")

    def run(x: Array, *, kind: str, steps: int, level: str) -> Array:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(level)  # "medium": bfloat16 inside
        try:
            return module.newton_schulz(x, steps, coefficient_type=kind)
        finally:
            torch.set_float32_matmul_precision(before)

    for precision, level in (("bfloat16", "medium"), ("float32", "highest")):
        for kind, steps, products in (
            ("quintic", 5, 15),
            ("polar_express", 5, 15),
            ("cans", 5, 15),
            ("cubic5", 5, 10),
            ("deepseekv4", 10, 30),
        ):
            name = f"Emerging-Optimizers, {kind}, {precision}"
            function = functools.partial(run, kind=kind, steps=steps, level=level)
            yield Peer(name, source, "torch", "float32", precision, products, function)


def _optax(folder: Path | None) -> Iterator[Peer]:
    muon = importlib.import_module("optax.contrib._muon")
    jax = importlib.import_module("jax")
    source = _version("optax")
    for precision in ("bfloat16", "float32"):
        for label, steps in (("standard", MUON), ("dion", tuple(muon._DION_NS_COEFFS))):
            coefficients = jax.numpy.asarray(steps)
            function = functools.partial(
                jax.jit(muon.orthogonalize_via_newton_schulz), ns_coeffs=coefficients
            )
            name = f"optax, {label}, {precision}"
            yield Peer(name, source, "jax", precision, precision, 15, function)


ADAPTERS: dict[str, Callable[[Path | None], Iterator[Peer]]] = {
    "torch.optim.Muon": _torch_muon,
    "KellerJordan/Muon": _muon,
    "dion": _dion,
    "gram-newton-schulz": _gram_newton_schulz,
    "Emerging-Optimizers": _emerging,
    "optax": _optax,
}


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run torch's compiled functions as they are written: the same results without compiling.

    Some packages are compiled again for every shape, which takes half a minute each time.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def main(
    peers: Annotated[Path | None, typer.Option(help="Folder of checkouts.")] = None,
) -> None:
    """Show the peers that are found, and the largest singular value that each makes."""
    console = Console(width=120)
    found, missing = find(peers)
    a = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    shown = Table("peer", "source", "format", "products", "largest", "smallest")
    with eager():
        for peer in found.values():
            sigma = np.linalg.svd(peer.result(a), compute_uv=False)
            shown.add_row(
                peer.name, peer.source, peer.precision, str(peer.products),
                f"{sigma[0]:.4f}", f"{sigma[-1]:.4f}",
            )  # fmt: skip
    console.print(shown)
    for name, why in missing.items():
        console.print(f"{name}: {why}", markup=False)


if __name__ == "__main__":
    typer.run(main)
