"""What `stce export --format=onnx` converts, and how far ONNX Runtime's logits are from the run's.

    python benchmarks/onnx_differences.py --write      all models, into docs/weights.md
    python benchmarks/onnx_differences.py --only tome  prints those whose names hold a text
    python benchmarks/onnx_differences.py --full vit_s_stce   a preset at its own size, 224 pixels, 1,000 classes

Tiny models of every body, embedding and token reduction with weights of noise, images of 32 pixels, compared as the
export compares: on one photograph and on three. Runs in the environment of launch/interop.sh.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch_models
from documents import DOCS, write_section
from made_runs import made_run
from measure import markdown_table

from stce_jax.convert import formats
from stce_jax.convert.formats import onnx
from stce_jax.errors import ConfigError
from stce_jax.models.bodies import BODIES
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.platform import terminal


def cases():
    """{name: (body, embedding, reduction, further options)}."""
    found = {f"vit over {name}": ("vit", name, None, {}) for name in torch_models.EMBEDDING}
    found |= {
        body: (body, getattr(kind, "EMBEDDING", "linear_patch"), None, {})
        for body, kind in BODIES.items()
        if body != "vit"
    }
    found |= {f"{body} of clusters": (body, "stce", None, {"downsample": "stce"}) for body in ("swin", "cvt")}
    for name in REDUCTIONS:
        pooling, options = torch_models.REDUCED.get(name, ("class", {}))
        own = {key: value for key, value in options.items() if key != "name"}
        found[f"vit with {name}"] = ("vit", "patch", name, {"pooling": pooling, **own})
    return found


def run_of(body, embedding, reduction, more):
    """A run of a tiny model."""
    own = dict(torch_models.BODY[body])
    width = own["width"] if "width" in own else own["widths"][0]
    stem = {
        key: tuple(width if entry is None else entry for entry in value) if isinstance(value, tuple) else value
        for key, value in torch_models.EMBEDDING[embedding].items()
    }
    return made_run("vit_ti_patch", body=body, embedding=embedding, reduction=reduction, **{**own, **stem, **more})


def measured(name, run):
    """(difference, greatest logit) of a model, or why it does not convert."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = formats.write("onnx", Path(folder), run, ema=False)
        except ConfigError as error:
            terminal.say(f"{name}: {error}")
            return str(error)
    seconds, size = time.perf_counter() - start, done["bytes"] / 2**20
    figures = f"{done['difference']:.1e} of {done['greatest_logit']:.2f}"
    terminal.say(f"{name}: {figures}, {size:.1f} MiB, {seconds:.0f} s to convert and compare")
    return done["difference"], done["greatest_logit"]


KEYS = ("model", "converts", "greatest difference of a logit", "greatest logit")


def rows_of(results):
    """Rows of the table: those that convert together, by kind, then each that does not."""
    kinds: dict[str, dict[str, tuple[float, float]]] = {}
    refused = []
    for name, result in results.items():
        if isinstance(result, str):
            reason = result.partition("this model: ")[2] or result
            refused.append((name, "no", reason.partition("; give ")[0], ""))
        else:
            kind = next((start for start in ("vit over ", "vit with ") if name.startswith(start)), "")
            kinds.setdefault(kind, {})[name.removeprefix(kind)] = result
    rows = []
    for kind, found in kinds.items():
        differences, greatest = (sorted(entry[part] for entry in found.values()) for part in (0, 1))
        spread = f"{differences[0]:.0e} to {differences[-1]:.0e}", f"{greatest[0]:.1f} to {greatest[-1]:.1f}"
        rows.append((kind + ", ".join(found), "yes", *spread))
    return [dict(zip(KEYS, row, strict=True)) for row in [*rows, *refused]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="models whose names hold one of these")
    parser.add_argument("--write", action="store_true", help="write the table into docs/weights.md")
    parser.add_argument("--full", nargs="+", default=[], metavar="PRESET", help="these at full size, and nothing else")
    arguments = parser.parse_args()
    for name in arguments.full:
        measured(name, made_run(name, image_size=224, classes=1000))
    if arguments.full:
        return
    wanted = {
        name: case for name, case in cases().items() if not arguments.only or any(map(name.count, arguments.only))
    }
    results = {name: measured(name, run_of(*case)) for name, case in wanted.items()}
    versions = {name: onnx._version(name) for name in ("jax2onnx", "onnxruntime")}
    head = f"jax2onnx {versions['jax2onnx']}, ONNX Runtime {versions['onnxruntime']}, JAX {jax.__version__}."
    text = f"{head}\n\n{markdown_table(rows_of(results))}"
    terminal.say(*text.splitlines())
    if arguments.write:
        write_section("onnx", text, path=DOCS / "weights.md")


if __name__ == "__main__":
    main()
