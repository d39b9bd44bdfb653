"""What is kept of a run of a study with a protocol: a small JSON file, from which tables and figures are drawn again.

It may be anybody's: its size is bounded, and what does not fit the protocol of this version is refused. `kept_folders`
has folders of them.
"""

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from stce_jax.errors import DataError, shown
from stce_jax.paths import first_line, parse_json, read_regular, write_text
from stce_jax.reproduce import protocol, recipe_protocol
from stce_jax.reproduce.cells import Row, cell_name, load_rows
from stce_jax.workdir import config as configuration

MOST_BYTES = 50_000  # of a run
MOST_IMAGES = 100_000
MOST_POINTS = 200  # of a curve
# Table -> version of its protocol: docs/study.md, docs/recipe.md, docs/bodies.md.
VERSIONS = {
    protocol.TABLE: protocol.VERSION,
    **dict.fromkeys(recipe_protocol.TABLES, recipe_protocol.VERSION),
    "bodies": 1,
}
EARLIER = dict.fromkeys(recipe_protocol.TABLES, recipe_protocol.EARLIER)  # versions whose results count, too
CURVES = ("loss", "top1", "affinity_entropy")
CLUSTERS = ("own", "other", "grid", "covered")  # see `analysis.edges.agreements`
_PLAIN = re.compile(r"[\w .,;:()+/@-]*")
_NEEDED = {
    **dict.fromkeys(("protocol", "seed", "test_images"), int),
    **dict.fromkeys(("table", "scale", "run", "config_digest", "images", "hits", "place", "version"), str),
    **dict.fromkeys(("config", "curves"), dict),
}


def config_of(config: Any) -> dict[str, Any]:
    """The keys of a config that a result can depend on, without the seed, as JSON has them."""
    found = configuration.of_result(config).items()
    return json.loads(json.dumps({key: value for key, value in found if value is not None and key != "seed"}))


@functools.cache
def _expected_config(table: str, scale: str, run: str) -> dict[str, Any]:
    (row,) = (row for row in load_rows(table, scale) if row.run == run)
    return config_of(row.config())


def expected_config(row: Row) -> dict[str, Any]:
    """`config_of` a row of this version."""
    return _expected_config(row.table, row.scale, row.run)


@functools.cache
def _defaults() -> dict[str, Any]:
    return json.loads(json.dumps(configuration.flatten(configuration.load_config("default"))))


def digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of what `config_of` gives."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def pack(hits: Bool[np.ndarray, "n"]) -> str:
    """Hits as text, a bit each."""
    return base64.b64encode(np.packbits(np.asarray(hits, bool)).tobytes()).decode()


def unpack(text: str, count: int) -> Bool[np.ndarray, "n"]:
    """What `pack` made of `count` hits; raises ValueError for what it cannot have made."""
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(data) != -(-count // 8):
        raise ValueError(f"there are {len(data)} bytes for {count} images")
    return np.unpackbits(data, count=count).astype(bool)


def pack_shares(values: Float[np.ndarray, "n"]) -> str:
    """Numbers of 0..1 as text, a byte each."""
    return base64.b64encode(np.round(255 * np.clip(values, 0, 1)).astype(np.uint8).tobytes()).decode()


def unpack_shares(text: str) -> Float[np.ndarray, "n"]:
    """What `pack_shares` made; raises ValueError for what is no base64."""
    return np.frombuffer(base64.b64decode(text, validate=True), np.uint8) / 255


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """{split: {"epoch", "loss", "top1", ...: numbers}} of lines of metrics.jsonl, at most MOST_POINTS of each split."""
    found = {}
    for split in ("train", "eval"):
        own = [line for line in lines if line["split"] == split]
        places = np.unique(np.linspace(0, len(own) - 1, min(len(own), MOST_POINTS)).round().astype(int))
        own = [own[place] for place in places]
        names = [name for name in CURVES if any(line.get(name) is not None for line in own)]
        found[split] = {name: [_rounded(line.get(name)) for line in own] for name in ("epoch", *names)}
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def write_run(folder: Path, run: Mapping[str, Any]) -> Path:
    """Writes a run's file; raises DataError if it would be larger than MOST_BYTES."""
    lines = (f"{json.dumps(key)}: {json.dumps(run[key], separators=(',', ':'))}" for key in sorted(run))
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if len(text) > MOST_BYTES:
        raise DataError(
            f"the results of {run['run']}, seed {run['seed']}, take {len(text):,} bytes, not {MOST_BYTES:,}"
        )
    path = folder / f"{cell_name(run['run'], run['seed'])}.json"
    write_text(path, text)
    return path


def read_run(path: Path, rows: Mapping[str, Row]) -> dict[str, Any]:
    """A run's file, with "hits" as bool [n] and "clusters" {name: float [m]} or None.

    Args:
      path: of the file.
      rows: {run: row} of the scale that is read.

    Raises:
      DataError: it is damaged, of another table, version of its protocol, scale or config.
    """
    try:
        found = parse_json(read_regular(path, MOST_BYTES).decode())
        _check_kinds(found)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no results: {first_line(error)}; take it out, and collect again") from error
    name = cell_name(found["run"], found["seed"])
    table = next((row.table for row in rows.values()), protocol.TABLE)
    if found["table"] != table:
        raise DataError(f"{path} is of the table {shown(found['table'])}, not {table}; keep it elsewhere")
    if found["protocol"] not in (VERSIONS[table], *EARLIER.get(table, ())):
        version = f"version {found['protocol']} of the protocol, not {VERSIONS[table]}"
        raise DataError(f"{path} is of {version}; keep it elsewhere")
    if path.stem != name or found["run"] not in rows:
        raise DataError(
            f"{path} holds {shown(name)}, which is not what it is called or no row; rename it, or take it out"
        )
    row = rows[found["run"]]
    if found["scale"] != row.scale:
        raise DataError(f"{path} is of scale {shown(found['scale'])}, not {row.scale}; keep it in that scale's folder")
    if found["config_digest"] != digest(found["config"]):
        raise DataError(f"{path} is damaged: its config has another digest; take it out, and collect again")
    if changed := _other_key(found["config"], row):
        raise DataError(f"{path} was trained with another config: {changed}; keep it elsewhere")
    try:
        found["hits"] = unpack(found["hits"], found["test_images"])
        clusters = found.get("clusters")
        found["clusters"] = clusters and {key: unpack_shares(clusters[key]) for key in CLUSTERS}
        if clusters and len({len(values) for values in found["clusters"].values()}) > 1:
            raise ValueError("its clusters are of different numbers of images")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {first_line(error)}; take it out, and collect again") from error
    return found


def _check_kinds(found: Any) -> None:
    """Raises ValueError unless a run's file has what it must, each of its type, and curves that can be drawn."""
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    found.setdefault("table", protocol.TABLE)  # which its first files do not say
    for key, kind in _NEEDED.items():
        if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
            raise ValueError(f"{key} is missing or of another type")
    for key in ("images_per_second", "seconds"):
        if not (found.get(key) is None or _is_number(found[key])):
            raise ValueError(f"{key} is no number")
    for key in ("place", "version"):  # they come into documents, which could make links or code of more
        if not _PLAIN.fullmatch(found[key]):
            raise ValueError(f"{key} has characters that are not expected there")
    if not 0 < found["test_images"] <= MOST_IMAGES or found["seed"] < 0:
        raise ValueError("a number is out of range")
    for split in ("train", "eval"):
        curves = found["curves"].get(split)
        if not isinstance(curves, dict) or not {"epoch"} <= curves.keys() <= {"epoch", *CURVES}:
            raise ValueError(f"the {split} curves are damaged")
        lists = list(curves.values())
        if not all(isinstance(one, list) and len(one) == len(lists[0]) <= MOST_POINTS for one in lists):
            raise ValueError(f"the {split} curves are of different lengths")
        for value in (value for one in lists for value in one):
            if value is not None and not _is_number(value):
                raise ValueError(f"the {split} curves have what is no number")
        if None in curves["epoch"]:
            raise ValueError(f"the {split} curves have no epoch")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _other_key(own: Mapping[str, Any], row: Row) -> str:
    """The first key in which a config is not the row's, in words; "" if there is none.

    A key that came with a later version and has its default counts as the same: until then it did not exist.
    """
    expected = expected_config(row)
    for key in sorted({**own, **expected}):
        if key not in own and expected[key] == _defaults().get(key):
            continue
        if own.get(key) != expected.get(key):
            return f"config.{key} is {shown(own.get(key))}, not {shown(expected.get(key))}"
    return ""
