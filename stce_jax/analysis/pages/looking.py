"""The page of `stce visualize --html`: one image, one pixel at a time.

What is shown is what `drawing.introspection` and `drawing.reductions` compute; the page looks it up. Shape letters: Y
side of a picture in pixels, H W features, A heads, h w keys, N tokens of the image's grid.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from stce_jax.analysis.drawing import introspection, pictures, reductions
from stce_jax.analysis.pages import shell

LARGEST = 2**25  # bytes of a page; browsers open that many at once
QUALITY = 85  # of the images, as JPEG
TITLE = "What the model sees"


class Looked(NamedTuple):
    """What a model makes of one image; None for what there is not.

    Attributes:
      affinities: of each iteration of its clustering, see `introspection.iterated_affinities`.
      attention: of the class token in each block, see `introspection.class_attention_by_head`.
      stages: of its token reduction, see `reductions.assignments`.
    """

    affinities: Sequence[Float[np.ndarray, "H W 9"]] | None = None
    attention: Sequence[Float[np.ndarray, "A h w"]] | None = None
    stages: Sequence[Int[np.ndarray, "n"]] | None = None


def common(model: Any, size: int, picture_side: int, names: Sequence[str], missing: Mapping[str, str]) -> dict:
    """What all images of a page share.

    Args:
      model: a body.
      size: side in pixels of the images that it sees.
      picture_side: Y.
      names: of the stages of its reduction, see `reductions.stage_names`.
      missing: {what cannot be shown: why}.
    """
    embedding = model.embedding
    grid, apart = introspection.attention_grid(model, size)
    tokens = introspection.nearest_tokens(embedding, size, picture_side)
    keys = introspection.nearest_keys(embedding, size, picture_side, grid, apart)
    features = introspection.nearest_features(embedding, size, picture_side)
    return {
        "side": picture_side,
        "heat": shell.packed(np.round(255 * pictures.HEAT(np.arange(256))[:, :3]).astype(np.uint8)),
        "light": pictures.LIGHT,
        "dark": pictures.DARK,
        "dimmed": reductions.DIMMED,
        "grid": list(embedding.grid(size, size)),
        "cell": list(introspection.cell_shape(getattr(embedding, "cell", 1))),
        "keys": list(grid),
        # The unit that each row and column of the picture is nearest to, for each kind of picture.
        "places": {
            "super_tokens": [features.tolist()] * 2,
            "attention": [places.tolist() for places in keys],
            "reduction": [places.tolist() for places in tokens],
        },
        "stages": list(names),
        "missing": dict(missing),
    }


def of_image(name: str, shown: UInt8[np.ndarray, "Y Y 3"], looked: Looked, embedding: Any, size: int) -> dict[str, Any]:
    """What a page holds of one image; affinities and attention as bytes.

    Args:
      name: of the image.
      shown: what the model sees, at the page's resolution.
      looked: what the model makes of it.
      embedding: of the model.
      size: side in pixels of the images that it sees.
    """
    picture = io.BytesIO()
    Image.fromarray(shown).save(picture, "JPEG", quality=QUALITY)
    found: dict[str, Any] = {
        "name": shell.name(name),
        "picture": "data:image/jpeg;base64," + base64.b64encode(picture.getvalue()).decode(),
    }
    if looked.affinities is not None:
        found["super_tokens"] = _super_tokens(looked.affinities, embedding, size)
    if looked.attention is not None:
        found["attention"] = [_attention(block) for block in looked.attention]
    if looked.stages is not None:
        found["reduction"] = [
            {"places": shell.packed(places.astype(np.int32)), "counts": reductions.counts(places)}
            for places in reductions.compose(looked.stages)
        ]
    return found


def _super_tokens(affinities: Sequence[Float[np.ndarray, "H W 9"]], embedding: Any, size: int) -> dict[str, Any]:
    """The super token of each feature before the first iteration and after each, and the affinities of each.

    Affinities are parts of the greatest of all: a 255th of that is what is lost.
    """
    count = introspection.nearest_features(embedding, size, size)[-1] + 1
    height, width = affinities[0].shape[:2] if len(affinities) else (count, count)
    labels = [introspection.grid_labels(height, width, embedding.cell)]
    labels += [introspection.super_token_labels(affinity, embedding.cell) for affinity in affinities]
    greatest = max((float(affinity.max()) for affinity in affinities), default=1.0)
    return {
        "shape": [int(height), int(width)],
        "labels": [shell.packed(each.astype(np.int32)) for each in labels],
        "affinities": [shell.packed(_bytes(affinity, greatest or 1.0)) for affinity in affinities],
        "greatest": greatest,
    }


def _attention(heads: Float[np.ndarray, "A h w"]) -> dict[str, Any]:
    """A block's attention: its mean over the heads, then each head, as parts of the greatest of the block."""
    maps = np.concatenate([heads.mean(axis=0, keepdims=True), heads])
    greatest = float(maps.max())
    return {
        "greatest": greatest,
        "greatest_mean": float(maps[0].max()),
        "maps": shell.packed(_bytes(maps, greatest or 1.0)),
    }


def _bytes(values: Float[np.ndarray, "*axes"], greatest: float) -> UInt8[np.ndarray, "*axes"]:
    return np.round(255 * np.clip(values / greatest, 0, 1)).astype(np.uint8)


def write(about: str, common_data: Mapping[str, Any], images: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """The page.

    Args:
      about: the model and its images, in words.
      common_data: of `common`.
      images: of `of_image`, at least one.
      left_out: how many images there would be besides, had the page more room.
    """
    missing = "".join(f"<li>{shell.text(why)}</li>" for why in common_data["missing"].values())
    notes = f"<h2>What is not shown</h2><ul>{missing}</ul>" if missing else ""
    if left_out:
        limit = f"{LARGEST / 2**20:.0f} MiB"
        notes += f"<p>{left_out} more images are left out: a page has at most {limit}.</p>"
    body = _BODY.replace("TITLE", TITLE).replace("NOTES", notes).replace("ABOUT", shell.text(about))
    data = {**common_data, "images": list(images)}
    return shell.page(TITLE, body, style="looking.css", script="looking.js", data=data)


_BODY = """<header><h1>TITLE</h1><p>ABOUT</p></header>
<noscript><p class="note">This page needs JavaScript, all of which is in it.</p></noscript>
<main>
<section aria-label="picture">
<div class="row"><label for="image">Image</label><select id="image"></select></div>
<fieldset class="row" id="views"><legend>Show</legend></fieldset>
<canvas id="canvas" tabindex="0" role="img" aria-describedby="help now"></canvas>
<div class="row" id="steps"><label for="step" id="step-name"></label><input type="range" id="step" min="0" value="0">
<output id="step-text" for="step"></output></div>
<div class="row" id="heads"><label for="head">Head</label><select id="head"></select></div>
<div class="row" id="heats"><input type="checkbox" id="heat"><label for="heat">affinity of every pixel to this
super token</label></div>
<div class="row" id="scale"><span>0%</span><canvas id="bar" width="256" height="1" role="img"
aria-label="scale of the colours"></canvas><span id="greatest"></span></div>
</section>
<section aria-label="what is under the pointer">
<h2 id="title"></h2><p id="now" role="status"></p>
<table id="nine"><caption>Affinities to the nine super tokens around it</caption><tbody></tbody></table>
<ol id="fate"></ol>
<p id="help">Move over the picture, touch it, or choose it with Tab and use the arrow keys; Page Up and Page Down, or +
and -, go through iterations or blocks. Blocks and tokens are counted from 0.</p>
NOTES
</section>
</main>"""
