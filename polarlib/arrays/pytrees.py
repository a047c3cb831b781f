"""Results whose arrays a library may look into."""

from __future__ import annotations

from typing import ClassVar


class Pytree:
    """Base of dataclasses that are pytrees of JAX: their fields but the static ones are leaves.

    JAX is not imported for it: `JaxOps` registers the subclasses, when it first meets an array.

    Attributes
    ----------
    static : tuple of str
        Fields that are part of the type, as they hold neither numbers nor arrays.
    """

    static: ClassVar[tuple[str, ...]] = ()
