"""Formats that `stce export` writes, a file each, and the table that finds them by name.

A format is a module of this package, imported when it is asked for, with

- write(directory, run, *, ema, ...) -> what `stce export` says: writes a run into an empty local directory, reads that
  back and compares it with the run; raises ConfigError if this run cannot be written so, CheckpointError if what was
  read back differs. The dict has "step", "dtype", "bytes", "batch_sizes" (compared), "difference" (the greatest of a
  logit) and "greatest_logit" (both None where the program that computes them is not installed, and a note says so),
  and may have "by" (that program), "only_logits" (True where weights cannot be read back by themselves), "platforms"
  and "notes" (lines for the user);
- OPTIONS: optional; those of `OPTION_FLAGS` that its `write` takes as keywords;
- check(...): optional; raises ConfigError, before the run is loaded, for values of these options that cannot be, or
  for a package that is not installed.

A new format is one new file here and one line in the table. This file imports no JAX.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stce_jax.errors import ConfigError, shown

FORMATS = {  # name -> module of this package
    "jax": "jax",
    "safetensors": "safetensors",
    "timm": "timm",
    "torch": "torch",
    "onnx": "onnx",
    "huggingface": "huggingface",
}
UNKNOWN_LICENSE = "unknown"  # as the Hugging Face hub calls it
OPTION_FLAGS = ("platforms", "batch", "license", "include")  # options of `stce export` that some formats take


def write(name: str, directory: Path, run: Any, *, ema: bool, **options: Any) -> dict[str, Any]:
    """Writes a run in a format, with the digests of all files beside them; see the format's `write`.

    Raises:
      ConfigError: see `find`, or the run has something that the format has no place for.
      CheckpointError: what was read back differs from the run.
      OSError: a file cannot be written.
    """
    from stce_jax.paths import open_path
    from stce_jax.workdir.digests import FILE_NAME, write_digests

    done = find(name, options).write(directory, run, ema=ema, **options)
    if not (directory / FILE_NAME).exists():
        write_digests(open_path(directory))
    return done


def find(name: str, options: Mapping[str, Any]) -> Any:
    """The module of a format that takes these options, which are checked.

    Raises:
      ConfigError: there is no such format, it has no such option, or the format's `check` refuses.
    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {shown(name)}; give one of {', '.join(FORMATS)}")
    for option in sorted(options.keys() & set(OPTION_FLAGS)):
        if option not in _options_of(name):
            takers = [other for other in FORMATS if option in _options_of(other)]
            raise ConfigError(
                f"--{option} is an option of --format={' and '.join(takers)}; leave it out with --format={name}"
            )
    module = _module(name)
    if hasattr(module, "check"):
        module.check(**{option: value for option, value in options.items() if option in OPTION_FLAGS})
    return module


def check_license(name: str) -> None:
    """Raises ConfigError for what can be no name of a licence."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", name):
        raise ConfigError(f"--license is {shown(name)}; give the hub's name of it, such as apache-2.0 or cc-by-4.0")


def others(name: str) -> str:
    """The formats besides one, for people."""
    return ", ".join(f"--format={other}" for other in FORMATS if other != name)


def _options_of(name: str) -> tuple[str, ...]:
    return getattr(_module(name), "OPTIONS", ())


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{FORMATS[name]}")
