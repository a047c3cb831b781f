"""What JAX is given to compile for a GPU or a TPU: programs lowered for both, without either.

    python -m tests.device.on_jax [--only PATTERN] [-v] [--json]

Operators are those of StableHLO, before XLA fuses them: as many as are written in the program, of a
loop those of one round, of a condition those of all branches. The table has the programs for CUDA.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from . import counting
from .cases import Case

PLATFORMS = ("cuda", "tpu")
# Operators that give no work to a device, or none of their own.
FREE = re.compile(
    r"stablehlo\.(constant|reshape|transpose|broadcast_in_dim|iota|return|convert|slice"
    r"|optimization_barrier|get_tuple_element|tuple)$"
)
CUSTOM = "stablehlo.custom_call"
LIBRARY = ("stablehlo.dot_general", "stablehlo.cholesky", "stablehlo.triangular_solve")
# Custom calls that hold something for the compiler, and call nothing.
MARKS = ("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "AllocateBuffer")


@dataclass(frozen=True)
class Program:
    """The text of a lowered function, and what is counted in it."""

    text: str

    def lines(self, function: str = "main") -> Iterator[str]:
        """Lines of a function, with those of the functions that it calls, as often as it does."""
        for line in self._functions[function]:
            yield line
            if called := re.search(r"\bcall @([\w.]+)\(", line):
                yield from self.lines(called[1])

    @functools.cached_property
    def _functions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in self.text.splitlines():
            if begun := re.match(r"\s*func\.func (?:\w+ )?@([\w.]+)\(", line):
                found[begun[1]] = lines = []
            elif found:
                lines.append(line)
        return found

    @property
    def operators(self) -> Counter[str]:
        """Operators that a device executes, by name."""
        names = (re.match(r"\s*(?:%\S+ = )?\"?(\w+\.\w+)", line) for line in self.lines())
        return Counter(name[1] for name in names if name and not FREE.match(name[1]))

    @property
    def custom_calls(self) -> Counter[str]:
        """Targets of custom calls."""
        found = (re.search(r"custom_call @([\w.]+)", line) for line in self.lines())
        return Counter(name[1] for name in found if name and name[1] not in MARKS)

    @property
    def callbacks(self) -> int:
        """Number of calls of the host."""
        calls = sum("callback" in name for name in self.custom_calls.elements())
        hosts = ("outfeed", "infeed", "send", "recv")
        return calls + sum(self.operators[f"stablehlo.{name}"] for name in hosts)

    @property
    def products(self) -> list[tuple[str, tuple[str, ...]]]:
        """Type of the operands and precisions of every product."""
        found = []
        for line in self.lines():
            if "dot_general" in line:
                operand = re.findall(r"tensor<(?:\d+x)*([a-z]\w*(?:<\w+>)?)>", line)[0]
                precision = re.search(r"precision = \[(\w+), (\w+)\]", line)
                found.append((operand, precision.groups() if precision else ("DEFAULT",)))
        return found


def lowered(f: Callable[..., Any], platform: str, *arrays: Any) -> Program:
    """The program of a function for a platform that need not be there."""
    text = jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    return Program(text)


def arrays_of(call: Callable[..., Any]) -> Callable[..., Any]:
    """The function that returns the arrays of a result alone."""

    def arrays(*given: Any) -> Any:
        result = call(*given)
        # A result of polar unpacks as its factors.
        return jax.tree.leaves(tuple(result) if hasattr(result, "status") else result)

    return arrays


def count(case: Case, verbose: bool = False) -> counting.Row:
    """Counts of the program of one case for CUDA."""
    programs: list[Program] = []
    f = arrays_of(case.function)
    array = jax.ShapeDtypeStruct(case.shape, case.dtype)
    came = counting.outcome(lambda: programs.append(lowered(f, "cuda", array)))
    if not programs:
        return {"outcome": came}
    operators, custom = programs[0].operators, programs[0].custom_calls
    library = custom + Counter({name: operators[name] for name in LIBRARY})
    rest = operators - Counter({name: operators[name] for name in (*LIBRARY, CUSTOM)})
    if verbose:
        counting.shown(rest, library)
    return {
        "kernels": rest.total(),
        "library calls": library.total(),
        "waits": programs[0].callbacks,
        "outcome": came,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    # Threads of JAX do not survive a fork, and what is traced does not depend on earlier traces.
    counting.command("jax", count, isolated=False)
