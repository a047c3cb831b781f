"""Configuration of the documentation site.

Build it with ``python -m sphinx -W --keep-going -b html docs docs/_build/html``, or by
``nox -s docs``, which installs what it needs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS), str(DOCS / "_ext")]
os.environ.setdefault("MPLBACKEND", "Agg")
# Child processes of the examples import the package of this checkout.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import inventories  # noqa: E402

from polarlib import __version__  # noqa: E402

project = "polarlib"
author = "The polarlib developers"
copyright = author
version = release = __version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "myst_parser",
    "numpydoc",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "repository",
    "docstrings",
    "pages",
    "explorer",
]

templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext", "_templates", "data", "figures", "explorer"]
nitpicky = False
suppress_warnings = ["config.cache"]  # sphinx_gallery_conf has functions

# -- pages -------------------------------------------------------------------------------------

# Copies of pages outside docs/ have another suffix (_ext/repository.py).
source_suffix = {".md": "markdown", ".markdown": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 4
myst_dmath_allow_labels = True
# Files outside docs/ that are pages: the page in docs/, or None for a copy (_ext/repository.py).
repository_pages = {
    "README.md": "index",
    "docs/decisions": "developers",
    "CHANGELOG.md": "changes",
    "CONTRIBUTING.md": None,
    "analysis/README.md": None,
    "analysis/*/README.md": None,
}
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# -- reference -------------------------------------------------------------------------------

autosummary_generate = True
autosummary_imported_members = False
# Names that differ in their case only have files that differ in more.
autosummary_filename_map = {
    "polarlib.schedule": "polarlib.schedule-function",
    "polarlib.design.spectrum": "polarlib.design.spectrum-function",
    "polarlib.design.fingerprint": "polarlib.design.fingerprint-function",
    "polarlib.design.minimax": "polarlib.design.minimax-function",
}
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_validation_checks = {
    *("GL01", "GL03", "GL05", "GL06", "GL07"),
    *("PR01", "PR02", "PR04", "PR09", "RT01", "RT02", "RT03", "RT04"),
}
# Fields of a class of results are documented as attributes, and not as parameters too.
numpydoc_validation_overrides = {"PR01": [r"\n\s*Attributes\n\s*-"]}

# Inventories of the few names that pages use, so that a build needs no network.
intersphinx_mapping = inventories.mapping(
    DOCS / "_ext" / "inventories.toml", DOCS / "_build" / "inventories"
)

# -- gallery ---------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"[/\\]plot_",
    # Scripts directly in examples/ are programs, not pages.
    "ignore_pattern": r"^(?!(.*[/\\])?plot_\w+\.py$)",
    "subsection_order": ["../examples/scipy", "../examples/deep_learning", "../examples/papers"],
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "reset_modules_order": "both",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("polarlib",),
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,
    "download_all_examples": False,
    "plot_gallery": True,
    "remove_config_comments": True,
    "image_srcset": ["2x"],
}

# -- output ----------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"polarlib {release}"
html_static_path = ["_static"]
html_css_files = ["polarlib.css"]
html_show_sourcelink = False
# Pages without others below them have no navigation of a section.
html_sidebars = {page: [] for page in ("install", "glossary", "citing", "changes")}
html_theme_options = {
    "logo": {"text": "polarlib"},
    "show_prev_next": False,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 7,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
