"""What every page has around it: one file, nothing from outside, and no text of strangers that could be code.

A page holds its style, its script and its data. Its content security policy lets a browser run that one script (by its
digest), and load nothing at all: neither files nor the network, were there ever a way to ask for them. Names of classes
and files reach the page as data or escaped, and scripts put them in as text.
"""

import base64
import hashlib
import html
import importlib.resources
import json
from typing import Any

import numpy as np

from stce_jax.platform import terminal

NAME = 300  # characters of a name on a page


def page(title: str, body: str, *, style: str, script: str, data: Any = None) -> str:
    """A whole page.

    Args:
      title: text.
      body: HTML, in which text of strangers is escaped already, see `text`.
      style, script: files of this package, without styles and handlers in attributes, which the policy refuses.
      data: what JSON can hold, read by the script from the element "data".
    """
    css, code = (_own_file(name) for name in (style, script))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(code)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    block = "" if data is None else f'<script type="application/json" id="data">{embedded(data)}</script>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n{body}\n{block}"
        f"<script>{code}</script>\n</body>\n</html>\n"
    )


def text(value: str) -> str:
    """Anybody's text for HTML, between tags or quotes: `name`, escaped."""
    return html.escape(name(value))


def name(value: str) -> str:
    """Anybody's text for a person: nothing in it is invisible or turns the writing direction, and it is not long."""
    return terminal.visible(terminal.shortened(value, NAME)).encode(errors="backslashreplace").decode()


def embedded(data: Any) -> str:
    """JSON that nothing in it can end: every "<", ">" and "&" is written as JSON escapes it."""
    written = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    return written


def packed(array: np.ndarray) -> str:
    """The bytes of an array, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).decode()


def _own_file(file: str) -> str:
    return (importlib.resources.files(__package__) / file).read_text("utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
