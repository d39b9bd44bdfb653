"""Sections of docs/performance.md that scripts write themselves: each between two comments that say whose it is."""

import re
import shlex
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def command():
    """The command line of this process, as a user would type it."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_section(name, text, made_by=None, path=DOCS / "performance.md"):
    """Replaces what stands between `<!-- NAME -->` and `<!-- end of NAME -->` with the command line and `text`.

    The command line is this process's, unless others made the numbers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    document = path.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(document):
        sys.exit(f"{path} has no section between {begin} and {end}")
    section = f"{begin}\n```\n{made_by or command()}\n```\n\n{text.strip()}\n{end}"
    path.write_text(pattern.sub(lambda _: section, document))
