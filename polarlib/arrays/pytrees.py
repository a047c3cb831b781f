"""Results whose arrays are leaves of JAX's pytrees."""

from __future__ import annotations

from typing import ClassVar


class Pytree:
    """Base of dataclasses that are pytrees of JAX; their fields except static ones are leaves.

    JAX is not imported: `JaxOps` registers the subclasses when the first JAX array is used.

    Attributes
    ----------
    static : tuple of str
        Fields that are part of the type, since they contain neither numbers nor arrays.
    """

    static: ClassVar[tuple[str, ...]] = ()
