"""What libraries log."""

import logging


def drop_orbax() -> None:
    """Drops what Orbax logs: hundreds of lines about errors that it raises as well."""
    logging.getLogger("absl").addFilter(_is_not_orbax)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace("\\", "/")
