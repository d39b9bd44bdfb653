"""Anybody's text inside Markdown and YAML, where it must mean nothing."""

import json
import re
from typing import Any

from stce_jax.platform.terminal import shortened, visible

LONGEST = 200  # characters of a value


def code(value: Any) -> str:
    """A value as code of Markdown, also within a table: no mark in it means anything, and it is one line."""
    text = shortened(visible(str(value)), LONGEST).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if not text or {text[0], text[-1]} & set("` ") else ""
    return f"{fence}{space}{text}{space}{fence}"


def quoted(value: Any) -> str:
    """A value as a string of YAML, which a string of JSON is."""
    return json.dumps(shortened(visible(str(value)), LONGEST), ensure_ascii=False)
