"""How time and memory grow with the image and with the batch: of the clustering, the embedding, and whole models.

    python benchmarks/growth.py --quick            a look, in about a minute
    python benchmarks/growth.py --write            the table and picture of docs/performance.md
    python benchmarks/growth.py --full             every size with every batch, where that fits

Measured are forward and backward passes without an optimizer: seconds of a call (CPU time of the process on a CPU, by
the wall clock elsewhere; the median of a few calls), and the temporary memory that XLA plans for the compiled program.
Without --full these are all image sizes with one image, and all batches at 224 pixels. What would take longer than
--seconds a call, by what smaller cases took, or more memory than --gigabytes, is left out before it runs, and named.
"""

import argparse
import functools
import itertools
import json
import time

import documents
import jax
import jax.numpy as jnp
import numpy as np
from embedding_cost import CELL, CLASSES, DEFAULT_ITERATIONS
from measure import machine, markdown_table

from stce_jax.analysis.curves import COLOURS, MARKERS
from stce_jax.models.factory import create_model
from stce_jax.models.ops.supertoken import cluster_super_tokens

SIZES, BATCHES = (64, 128, 224, 256, 384, 512, 768, 1024), (1, 2, 4, 8, 16, 32, 64, 128)
QUICK_SIZES, QUICK_BATCHES = (128, 224, 512), (1, 8)
USUAL_SIZE = 224
STRIDE, CHANNELS = 8, 64  # of what the clustering of vit_s_stce works on
PATCH = 16  # pixels along a side that become one token of the body
CLUSTERING, EMBEDDING = "clustering", "embedding"
SUBJECTS = (CLUSTERING, EMBEDDING, "vit_ti_stce", "vit_s_stce")


def forward_backward(name, size, batch, dtype):
    """(jitted function, its arguments as shapes): the gradient of half the outputs' squares summed."""
    if name == CLUSTERING:

        def loss(features):
            tokens, _ = cluster_super_tokens(features, CELL, DEFAULT_ITERATIONS)
            return 0.5 * jnp.square(tokens).sum()

        side = size // STRIDE
        return jax.jit(jax.grad(loss)), (jax.ShapeDtypeStruct((batch, side, side, CHANNELS), dtype),)
    model = create_model("vit_s_stce" if name == EMBEDDING else name, num_classes=CLASSES, image_size=size, dtype=dtype)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    if name == EMBEDDING:
        model = model.embedding.clone(parent=None)
        variables = {kind: collection["embedding"] for kind, collection in variables.items()}

    def loss(params, statistics, images):
        outputs, statistics = model.apply({"params": params, **statistics}, images, train=True, mutable=["batch_stats"])
        return 0.5 * jnp.square(outputs.astype(jnp.float32)).sum(), statistics

    statistics = {"batch_stats": variables["batch_stats"]}
    return jax.jit(jax.grad(loss, has_aux=True)), (variables["params"], statistics, images)


def random_array(shape):
    return 0.1 * jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)


def median_seconds(call, calls, budget):
    """The median of some calls, of fewer where they take longer than the budget, after one that is not counted."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    jax.block_until_ready(call())
    seconds = []
    while len(seconds) < calls and sum(seconds) < budget:
        start = clock()
        jax.block_until_ready(call())
        seconds.append(clock() - start)
    return float(np.median(seconds))


def measure(name, size, batch, options):
    """Seconds and temporary bytes of one case; the seconds None and "left_out" the reason if it does not fit."""
    function, shapes = forward_backward(name, size, batch, options.dtype)
    compiled = function.lower(*shapes).compile()
    analysis = compiled.memory_analysis()
    row = {"temporary_bytes": analysis.temp_size_in_bytes, "seconds": None, "left_out": ""}
    if analysis.temp_size_in_bytes + analysis.argument_size_in_bytes > options.gigabytes * 1e9:
        return row | {"left_out": "memory"}
    arguments = jax.tree.map(random_array, shapes)
    return row | {"seconds": median_seconds(functools.partial(compiled, *arguments), options.calls, options.seconds)}


def measure_all(options):
    """One row a case, smaller ones first; a case is as slow as those before it say, image by image, token by token."""
    sizes, batches = (QUICK_SIZES, QUICK_BATCHES) if options.quick else (SIZES, BATCHES)
    cases = list(itertools.product(sizes, batches))
    if not options.full:
        cases = [(size, batch) for size, batch in cases if batch == 1 or size == USUAL_SIZE]
    rows = []
    for name in options.subjects:
        a_token = 0.0  # seconds, of the largest case so far
        for size, batch in sorted(cases, key=lambda case: case[0] ** 2 * case[1]):
            tokens = (size // PATCH) ** 2
            row = {"what": name, "image_size": size, "batch": batch, "tokens": tokens}
            if a_token * tokens * batch > options.seconds:
                row |= {"seconds": None, "temporary_bytes": None, "left_out": "time"}
            else:
                row |= measure(name, size, batch, options)
            a_token = row["seconds"] / tokens / batch if row["seconds"] else a_token
            rows.append(row)
            print(row, flush=True)
    return rows


def growth_exponent(rows, key, over):
    """a of key ~ over**a by least squares of the logarithms, of the measured rows; None for fewer than two."""
    points = [(row[over], row[key]) for row in rows if row[key]]
    if len(points) < 2:
        return None
    return float(np.polyfit(*np.log(np.array(points, float)).T, 1)[0])


def over_sizes(rows, name):
    return [row for row in rows if row["what"] == name and row["batch"] == 1]


def over_batches(rows, name):
    return [row for row in rows if row["what"] == name and row["image_size"] == USUAL_SIZE]


def cell(row):
    """ "milliseconds / megabytes" of an image, or why there is none."""
    if row["seconds"] is None:
        return row["left_out"]
    numbers = 1e3 * row["seconds"] / row["batch"], row["temporary_bytes"] / row["batch"] / 1e6
    return " / ".join(f"{number:,.0f}" if number >= 100 else f"{number:.3g}" for number in numbers)


def tables(rows):
    """Markdown: over image sizes, with the exponents, and over batches."""
    parts = []
    for select, along, over, fitted_from in (
        (over_sizes, "image_size", "tokens", USUAL_SIZE),
        (over_batches, "batch", "batch", 8),
    ):
        lines = []
        for name in dict.fromkeys(row["what"] for row in rows):
            own = sorted(select(rows, name), key=lambda row: row[along])
            large = [row for row in own if row[along] >= fitted_from]
            line = {"an image: ms / MB": name} | {f"{row[along]}": cell(row) for row in own}
            for key, label in (("seconds", "time"), ("temporary_bytes", "memory")):
                exponent = growth_exponent(large, key, over)
                line[f"a, {label}"] = "" if exponent is None else f"{exponent:.2f}"
            lines.append(line)
        unit = "pixels, one image" if along == "image_size" else f"images, {USUAL_SIZE} pixels"
        parts.append(f"Over {unit}; a, of a call, is fitted from {fitted_from} on:\n\n{markdown_table(lines)}")
    return "\n\n".join(parts)


def draw(rows, path):
    """Time (above) and memory (below) of an image, over tokens (left) and over the batch (right)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    for column, (select, over, label) in enumerate(
        (
            (over_sizes, "tokens", "tokens of an image (64 to 1024 pixels), one image"),
            (over_batches, "batch", f"images at once, {USUAL_SIZE} pixels"),
        )
    ):
        units = (("seconds", 1e3, "ms an image"), ("temporary_bytes", 1e-6, "temporary MB an image"))
        for line, (key, scale, unit) in enumerate(units):
            panel = panels[line][column]
            for index, name in enumerate(dict.fromkeys(row["what"] for row in rows)):
                own = sorted((row[over], scale * row[key] / row["batch"]) for row in select(rows, name) if row[key])
                style = {"color": COLOURS[index], "marker": MARKERS[index]}
                panel.plot(*zip(*own, strict=True), **style, markersize=4, label=name)
                if over == "tokens":  # linear growth, from the usual size on
                    usual = [value for tokens, value in own if tokens == (USUAL_SIZE // PATCH) ** 2]
                    ends = [(USUAL_SIZE // PATCH) ** 2, own[-1][0]]
                    if usual:
                        panel.plot(ends, [usual[0], usual[0] * ends[1] / ends[0]], color="0.6", linewidth=0.8)
            panel.set(xscale="log", yscale="log", ylabel=unit)
            panel.grid(which="major", color="0.9")
            if line:
                panel.set_xlabel(label)
    panels[0][0].legend(title="grey: linear in tokens", fontsize="small", title_fontsize="small")
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--quick", action="store_true", help="three sizes and two batches")
    parser.add_argument("--full", action="store_true", help="every size with every batch")
    parser.add_argument("--seconds", type=float, default=8.0, help="no call may take longer, by what others took")
    parser.add_argument("--gigabytes", type=float, default=6.0, help="of temporaries and arguments of a call")
    parser.add_argument("--calls", type=int, default=5, help="timed calls of a case, or fewer in --seconds")
    parser.add_argument("--json", metavar="PATH", help="also write the rows there")
    parser.add_argument("--read", metavar="PATH", help="take the rows of such a file; nothing is measured")
    parser.add_argument("--write", action="store_true", help="write table and picture into docs/performance.md")
    options = parser.parse_args()
    if options.device != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    if options.read:
        with open(options.read) as file:
            contents = json.load(file)
    else:
        contents = {"machine": machine(), "command": documents.command(), "dtype": options.dtype}
        contents["limits"] = f"longer than {options.seconds:g} s a call or more than {options.gigabytes:g} GB"
        contents["rows"] = measure_all(options)
    text = f"{contents['machine']}; {contents['dtype']}. What takes {contents['limits']} is left out, and the reason "
    text += f"stands in its place.\n\n{tables(contents['rows'])}\n"
    print(text)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(contents, file, indent=1)
    if options.write:
        documents.write_section("growth", text, contents["command"])
        draw(contents["rows"], documents.DOCS / "growth.png")


if __name__ == "__main__":
    main()
