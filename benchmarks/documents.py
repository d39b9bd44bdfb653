"""Sections of docs/performance.md that scripts write themselves: each between two comments that say whose it is."""

import os
import re
import shlex
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
MATTERS = ("GLIBC_TUNABLES", "XLA_FLAGS", "MALLOC_ARENA_MAX")  # to the speed of what runs


def command():
    """The command line of this process as a user would type it, with what else of its environment counts for speed."""
    variables = [f"{name}={shlex.quote(os.environ[name])}" for name in MATTERS if name in os.environ]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if 0 < len(cores) < os.cpu_count() else []
    words = [word for word in sys.argv[1:] if not word.startswith("--json=")]
    if "--json" in words:  # where else the numbers went says nothing of them
        place = words.index("--json")
        del words[place : place + 2]
    return " ".join([*variables, shlex.join([*pinned, "python", f"benchmarks/{Path(sys.argv[0]).name}", *words])])


def write_section(name, text, made_by=None, path=DOCS / "performance.md"):
    """Replaces what stands between `<!-- NAME -->` and `<!-- end of NAME -->` with the command line and `text`.

    The command line is this process's, unless others made the numbers; "" leaves it out.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    document = path.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(document):
        sys.exit(f"{path} has no section between {begin} and {end}")
    words = command() if made_by is None else made_by
    section = "\n".join([begin, *([f"```\n{words}\n```\n"] if words else []), text.strip(), end])
    path.write_text(pattern.sub(lambda _: section, document))
