"""The one door by which text reaches a terminal: what could steer it is escaped, and the length is bounded.

Names of classes and files, values of configs and messages of other programs are anybody's text. An escape sequence
among them could rename the window, hide a line or forge one; a mark that turns the writing direction shows another
name than there is. JAX is not imported.
"""

import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any, TextIO

MESSAGE = 2000  # characters of a message, of which the cause comes first and the remedy last
LINE = 10_000  # characters of a line of a table or report


def printable(text: str, file: TextIO | None = None) -> str:
    """A text in one line that a terminal only shows.

    Escaped, as Python writes them, are control characters, line breaks, marks of the writing direction and other
    invisible characters, and what `file` (by default standard output) cannot encode.
    """
    encoding = getattr(file or sys.stdout, "encoding", None) or "utf-8"
    return visible(text).encode(encoding, "backslashreplace").decode(encoding)


def visible(text: str) -> str:
    """`printable` for what is no terminal, such as pictures and reports: any letter can be shown there."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, longest: int) -> str:
    """A text of at most `longest` characters (10 or more): of a longer one the middle is left out."""
    if len(text) <= longest:
        return text
    start = (longest - 5) * 2 // 3
    return f"{text[:start]} ... {text[len(text) - (longest - 5 - start) :]}"


def one_line(message: object) -> str:
    """A message, such as an exception, in one line of bounded length; to be printed by `say` or `warn`."""
    try:
        text = str(message)
    except Exception:  # somebody's own exception
        text = type(message).__name__
    return shortened(" ".join(text.split()), MESSAGE)


def say(*lines: str, file: TextIO | None = None) -> None:
    """Prints each text as one line, on standard output or in `file`, at once."""
    file = file or sys.stdout
    print("\n".join(printable(shortened(line, LINE), file) for line in lines), file=file, flush=True)


def warn(message: object) -> None:
    """Prints a message or an error on standard error, in one line that names the program."""
    say(f"stce: {one_line(message)}", file=sys.stderr)


class Data:
    """Standard output for what programs read, JSON and CSV: as it is in a pipe or a file, escaped on a terminal."""

    def write(self, data: bytes) -> None:
        """Writes whole lines of UTF-8, in which surrogates stand for bytes that are none."""
        if not sys.stdout.isatty():
            sys.stdout.buffer.write(data)
            return
        lines = data.decode(errors="surrogateescape").split("\n")
        sys.stdout.write("\n".join(map(printable, lines)))


def print_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Prints a traceback on standard error, as `sys.excepthook` does."""
    say(*"".join(traceback.format_exception(kind, error, trace)).splitlines(), file=sys.stderr)


def escape_what_python_prints() -> None:
    """From now on, in the whole process, tracebacks and warnings that Python prints pass through here, too."""
    as_before = warnings.formatwarning

    def format_warning(*where: Any, **more: Any) -> str:
        return "".join(f"{printable(line, sys.stderr)}\n" for line in as_before(*where, **more).splitlines())

    def print_of_thread(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_type is not SystemExit:
            print_traceback(failure.exc_type, failure.exc_value, failure.exc_traceback)

    sys.excepthook = print_traceback
    threading.excepthook = print_of_thread
    warnings.formatwarning = format_warning
