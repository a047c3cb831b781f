"""A warning of the build where a generated block is stale (``docs/make_reference.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def check_blocks(app: Sphinx) -> None:
    """Warn where a generated block differs from what it would be made from now."""
    import make_reference
    from sphinx.util import logging

    for page in make_reference.PAGES:
        if make_reference.stale(page):
            logging.getLogger(__name__).warning(
                "docs/%s is stale; run python docs/make_reference.py", page, type="pages"
            )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("builder-inited", check_blocks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
