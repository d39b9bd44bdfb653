"""The format `huggingface`: a folder for the Hugging Face hub, ready for `hf upload OWNER/NAME FOLDER`.

Files: model.safetensors, by this package's names, model.json, README.md, the model card filled in from the run, and a
folder for each other format that is to be in it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stce_jax.convert import formats
from stce_jax.convert.card import write_card
from stce_jax.convert.files import HUB_WEIGHTS
from stce_jax.convert.formats.safetensors import write_weights
from stce_jax.errors import ConfigError
from stce_jax.paths import write_text
from stce_jax.training.assemble import Run

OPTIONS = ("license", "include")
CARD = "README.md"


def check(*, license: str = formats.UNKNOWN_LICENSE, include: Sequence[str] = ()) -> None:
    """Raises ConfigError for what can be no licence, or for a format that cannot be included."""
    formats.check_license(license)
    if len(set(include)) < len(include):
        raise ConfigError(f"--include={','.join(map(str, include))} names a format twice; name each once")
    for name in include:
        if name == "huggingface":
            raise ConfigError("--include=huggingface: it cannot hold itself; leave it out")
        formats.find(name, {})


def write(
    directory: Path,
    run: Run,
    *,
    ema: bool,
    license: str = formats.UNKNOWN_LICENSE,
    include: Sequence[str] = (),
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a run as a folder for the hub; see `formats`.

    Args:
      directory, run, ema: see `formats`.
      license: of the weights, by its name on the hub.
      include: other formats, each of which gets a folder of its own.
      known: what the workdir says of the checkpoint, see `card.write_card`.
    """
    done = write_weights(directory, run, ema=ema, file=HUB_WEIGHTS)
    notes = []
    for name in include:
        (directory / name).mkdir()
        options = {"license": license} if name == "timm" else {}
        part = formats.write(name, directory / name, run, ema=ema, **options)
        if part["difference"] is not None:
            by = f" by {part['by']}" if "by" in part else ""
            notes.append(f"{name}/: logits{by} differ from the run's by at most {part['difference']:.1e}")
        notes += [f"{name}/: {note}" for note in part.get("notes", ())]
    text = write_card(run, ema=ema, weights=HUB_WEIGHTS, license=license, known=known or {}, include=include)
    write_text(directory / CARD, text)
    if license == formats.UNKNOWN_LICENSE:
        notes.append("the card says that the licence is unknown: --license=NAME, or edit README.md")
    return {**done, "notes": notes}
