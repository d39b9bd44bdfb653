"""Kept results of the clustering study, made up: what `benchmarks/study.py --collect` would have written."""

import numpy as np

from stce_jax.reproduce.kept import CLUSTERS, config_of, digest, pack, pack_shares, write_run
from stce_jax.reproduce.kept_folders import TestImages, write_images
from stce_jax.reproduce.protocol import VERSION

FINGERPRINT = "f" * 64
_CURVE = {"epoch": [1.0, 2.0], "loss": [2.0, 1.0], "top1": [0.2, 0.6]}
_configs = {}


def made(row, seed, hits, *, clusters=False, **changes):
    """The entries of a run whose last epoch has right what `hits` [images] says."""
    key = row.table, row.scale, row.run
    if key not in _configs:
        _configs[key] = config_of(row.config())
    config = _configs[key]
    found = {
        "protocol": VERSION,
        "scale": row.scale,
        "run": row.run,
        "seed": seed,
        "config": config,
        "config_digest": digest(config),
        "images": FINGERPRINT,
        "test_images": len(hits),
        "hits": pack(hits),
        "curves": {"train": dict(_CURVE), "eval": dict(_CURVE)},
        "images_per_second": 100.0,
        "seconds": 60.0,
        "place": "2 cores, 1 x cpu, Python 3.11.7, jax 0.10.2",
        "version": "0.1.0",
    }
    if clusters:
        found["curves"]["eval"]["affinity_entropy"] = [2.1, 1.9]
        found["clusters"] = {name: pack_shares(np.full(8, 0.6 if name == "own" else 0.4)) for name in CLUSTERS}
    return found | changes


def keep(folder, row, seed, hits, **changes):
    """Writes them; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_run(folder, made(row, seed, hits, **changes))


def keep_images(folder, count, classes=10):
    """Writes images.json of test images sorted by class."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.sort(np.arange(count) % classes)
    ids = tuple(f"class{label}" for label in range(classes))
    write_images(folder, TestImages(FINGERPRINT, ids, labels, np.linspace(0, 1, count)))


def drawn_hits(rng, shares, seeds, images, *, alike=0.8):
    """{run: bool [seeds, images]} of runs that have these shares right; runs and seeds mostly agree on an image."""
    hard = rng.random(images)
    found = {}
    for run, share in shares.items():
        own = alike * hard + (1 - alike) * rng.random((seeds, images))
        found[run] = own < np.quantile(own, share)
    return found
