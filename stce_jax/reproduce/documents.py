"""A document as a list of blocks, written as Markdown or as one HTML page that needs no other file.

Blocks: `heading`, `paragraph`, `bullets`, `table`, `figure`, `commands`. Text between backticks is code in both forms.
"""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stce_jax.platform import terminal

Block = dict[str, Any]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { font-variant-numeric: tabular-nums; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
table { border-collapse: collapse; width: 100%; }
/* A wide table scrolls in a frame; a shadow says on which side there is more of it. */
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid #ccc; border-radius: .3rem; background:
  linear-gradient(90deg, #fff 30%, #fff0) 0 0 / 3rem 100%, linear-gradient(270deg, #fff 30%, #fff0) 100% 0 / 3rem 100%,
  linear-gradient(90deg, #0003, #0000) 0 0 / 1rem 100%, linear-gradient(270deg, #0003, #0000) 100% 0 / 1rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
.scroll:focus-visible { outline: 3px solid #0072b2; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; font-weight: 600; } td:first-child { min-width: 9rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f6f8fa; } code { padding: .1rem .25rem; }
pre { padding: .7rem; overflow-x: auto; } figure { margin: 1rem 0; } img { max-width: 100%; }
figcaption { color: #555; font-size: .9rem; }
"""


def heading(text: str, level: int = 2) -> Block:
    return {"kind": "heading", "text": text, "level": level}


def paragraph(text: str) -> Block:
    return {"kind": "paragraph", "text": text}


def bullets(lines: Iterable[str]) -> Block:
    return {"kind": "bullets", "lines": list(lines)}


def table(rows: Sequence[Mapping[str, str]]) -> Block:
    """Rows are dicts with the same keys, the header; cells are texts."""
    return {"kind": "table", "rows": rows}


def figure(path: Any, caption: str) -> Block:
    """`path` is a PNG beside the document."""
    return {"kind": "figure", "path": Path(path), "caption": caption}


def commands(title: str, lines: Iterable[str]) -> Block:
    """Command lines that are folded away where that is possible."""
    return {"kind": "commands", "title": title, "lines": list(lines)}


def to_markdown(blocks: Iterable[Block]) -> str:
    """The document as Markdown; figures are links."""
    return _visible("\n\n".join(_markdown(block) for block in without_empty(blocks))) + "\n"


def to_html(blocks: Iterable[Block], title: str) -> str:
    """The document as one HTML page, figures included."""
    body = _visible("\n".join(_html(block) for block in without_empty(blocks)))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(_visible(title))}</title>\n'
        f"<style>{STYLE}</style>\n{body}\n</html>\n"
    )


def without_empty(blocks: Iterable[Block]) -> list[Block]:
    """The blocks without tables and lists that hold nothing, and without headings that nothing follows."""
    kept: list[Block] = []
    for block in reversed(list(blocks)):
        if block["kind"] == "heading":
            behind = kept[-1] if kept else {"kind": "heading", "level": 0}
            if behind["kind"] == "heading" and behind["level"] <= block["level"]:
                continue
        elif not block.get("rows", block.get("lines", True)):
            continue
        kept.append(block)
    return kept[::-1]


def _markdown(block: Block) -> str:
    match block:
        case {"kind": "heading", "text": text, "level": level}:
            return f"{'#' * level} {text}"
        case {"kind": "paragraph", "text": text}:
            return text
        case {"kind": "bullets", "lines": lines}:
            return "\n".join(f"- {line}" for line in lines)
        case {"kind": "table", "rows": rows}:
            lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
            return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        case {"kind": "figure", "path": path, "caption": caption}:
            return f"![{caption}]({path.name})\n\n{caption}"
        case {"kind": "commands", "title": title, "lines": lines}:
            return "\n".join([f"{title}:", "", "```", *lines, "```"])
    raise ValueError(f"unknown block {block['kind']!r}")


def _html(block: Block) -> str:
    match block:
        case {"kind": "heading", "text": text, "level": level}:
            return f"<h{level}>{_inline(text)}</h{level}>"
        case {"kind": "paragraph", "text": text}:
            return f"<p>{_inline(text)}</p>"
        case {"kind": "bullets", "lines": lines}:
            return "<ul>\n" + "\n".join(f"<li>{_inline(line)}</li>" for line in lines) + "\n</ul>"
        case {"kind": "table", "rows": rows}:
            head = "".join(f"<th>{_inline(name)}</th>" for name in rows[0])
            lines = ["".join(f"<td>{_inline(cell)}</td>" for cell in row.values()) for row in rows]
            whole = f"<table>\n<tr>{head}</tr>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"
            return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{whole}</div>'
        case {"kind": "figure", "path": path, "caption": caption}:
            picture = base64.b64encode(path.read_bytes()).decode()
            alternative, text = html.escape(caption), _inline(caption)
            image = f'<img alt="{alternative}" src="data:image/png;base64,{picture}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
        case {"kind": "commands", "title": title, "lines": lines}:
            text = html.escape("\n".join(lines))
            return f"<details><summary>{_inline(title)}</summary><pre>{text}</pre></details>"
    raise ValueError(f"unknown block {block['kind']!r}")


def _visible(text: str) -> str:
    """Lines in which nothing is invisible: names and errors are anybody's text."""
    return "\n".join(map(terminal.visible, text.split("\n")))


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
