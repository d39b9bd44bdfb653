"""How Sphinx builds the site: `bash launch/docs.sh`, or `python -m sphinx -W -b html docs site`."""

import importlib
import re
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
napoleon_attr_annotations = False  # the signature has the types
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_default_options = {"exclude-members": "setup, dtype, replace"}  # linen's and flax.struct's own

html_theme = "furo"
html_title = f"stce_jax {release}"


def readable(app, what, name, obj, options, signature, returns):
    """Cuts `parent` and `name`, which linen adds to every module, out of a signature, and shortens names of types."""
    if what == "class" and signature:
        signature = re.sub(r"(, )?(\*, )?parent:.*\)$", ")", signature)

    def shorten(text):
        return text and re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", text.replace("jaxlib._jax.Array", "Array"))

    return shorten(signature), shorten(returns)


def keep_columns(app, what, name, obj, options, lines):
    """Makes the indented lists in the docstrings of modules literal: their columns have a meaning."""
    if what != "module":
        return
    for index in range(len(lines) - 1, 0, -1):
        if lines[index].startswith("  ") and not lines[index - 1]:
            lines[index:index] = ["::", ""]


def fill_in_tables(app, docname, source):
    """Replaces `@TABLE@` of models, one on a line, by the documents of all that the table holds."""

    def documents(match):
        folder, table = match[1].lower(), match[1]
        found = vars(importlib.import_module(f"stce_jax.models.{folder}"))[table].values()
        names = [f"{module.__module__}.{module.__qualname__}" for module in found]
        return "\n".join(f".. autoclass:: {name}\n   :members:\n   :special-members: __call__\n" for name in names)

    source[0] = re.sub(r"^@(\w+)@$", documents, source[0], flags=re.MULTILINE)


def setup(app):
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-process-docstring", keep_columns)
    app.connect("source-read", fill_in_tables)
