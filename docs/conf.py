"""How Sphinx builds the site: `bash launch/docs.sh`, or `python -m sphinx -W -b html docs site`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, whatever is installed

import stce_jax  # noqa: E402

project = "stce_jax"
author = "the authors of stce_jax"
copyright = author
release = version = stce_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # [text](page.md#a-heading) works for headings up to this level

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"stce_jax {release}"


def without_linens_own(app, what, name, obj, options, signature, returns):
    """Cuts `parent` and `name`, which linen adds to every module, out of a signature."""
    if what == "class" and signature and ", parent:" in signature:
        signature = signature.partition(", parent:")[0].replace("(parent:", "(") + ")"
    return signature, returns


def setup(app):
    app.connect("autodoc-process-signature", without_linens_own)
