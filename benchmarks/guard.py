"""A guard against regressions of speed: compares ratios of times within one run with the committed ones.

    python benchmarks/guard.py                      compares with benchmarks/ratios.json; exit code 1 for a regression
    python benchmarks/guard.py --update             writes this run's ratios there, for this kind of device

Run by hand or nightly, on a machine with little else to do; on a busy one pin it to a core (taskset -c 0). Each pair
takes turns, round by round. A ratio is the time of what is shipped over that of a plain form, or of one model over
another; smaller is better. It carries its interval over the rounds (see `median_estimate`), and is worse than the
committed one if the two intervals lie more than SLACK apart. Ratios are kept for each kind of device, on CPUs in
float32 and by CPU time of the process, else in bfloat16 and by the wall clock.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from clustering_forms import FORMS
from embedding_cost import CELL, DEFAULT_ITERATIONS, FEATURES, passes
from flax import linen as nn
from measure import Estimate, interleave, machine, markdown_table, median_estimate

from stce_jax.models.conv_layers import ConvModule, convolution
from stce_jax.models.factory import create_model
from stce_jax.models.layers import MLP, LayerNorm
from stce_jax.models.ops.attention import dot_product_attention
from stce_jax.models.ops.supertoken import cluster_super_tokens

RATIOS = Path(__file__).with_name("ratios.json")
SLACK = 0.02  # of the committed ratio: another day, another build of the compiler
FEWEST_ROUNDS = 6  # fewer give no interval
CLASSES, IMAGE_SIZE = 100, 224
TOKENS, HEADS, HEAD_WIDTH, HIDDEN = 197, 6, 64, 1152  # of ViT-S


class PlainConvModule(nn.Module):
    """Eq. 1 of linen's own parts."""

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs, *, train):
        outputs = nn.gelu(convolution(self.features, 3, self.stride, self.dtype)(inputs), approximate=False)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(outputs)


class PlainMLP(nn.Module):
    """The MLP of linen's own parts."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens):
        hidden = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype)(tokens), approximate=False)
        return nn.Dense(tokens.shape[-1], dtype=self.dtype)(hidden)


def forward_backward(function, *shape, dtype):
    """The gradient of <function(x), x'> for random x, as a function without arguments."""
    inputs = jax.random.normal(jax.random.key(0), shape, dtype)
    direction = jax.random.normal(jax.random.key(1), jax.eval_shape(function, inputs).shape, dtype)
    gradient = jax.jit(jax.value_and_grad(lambda x, d: (function(x) * d).astype(jnp.float32).sum()))
    return functools.partial(gradient, inputs, direction)


def of_module(module, *shape, dtype, **options):
    """Forward and backward pass of a linen module without statistics, for its inputs and parameters."""
    inputs = jax.random.normal(jax.random.key(0), shape, dtype)
    variables = module.init(jax.random.key(1), inputs, **options)
    direction = jax.random.normal(jax.random.key(2), shape, dtype)

    def loss(variables, inputs, direction):
        return (module.apply(variables, inputs, **options) * direction).astype(jnp.float32).sum()

    return functools.partial(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), variables, inputs, direction)


def pairs_of_parts(batch, dtype):
    """dict name -> (what is shipped, its plain form), each forward and backward, as functions without arguments."""
    tokens = (batch, TOKENS, HEADS * HEAD_WIDTH)
    qkv, features = (3, batch, TOKENS, HEADS, HEAD_WIDTH), (batch, *FEATURES)
    images = jax.random.normal(jax.random.key(0), (batch, 112, 112, 16), dtype)

    def conv_module(kind):
        module = kind(32, 1, dtype=dtype)
        variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(1), images)
        return passes(module, variables, images)["training"]

    plain_norm = nn.LayerNorm(1e-6, dtype=dtype)
    return {
        "MLP / linen's": (
            of_module(MLP(HIDDEN, dtype=dtype), *tokens, dtype=dtype, train=True),
            of_module(PlainMLP(HIDDEN, dtype), *tokens, dtype=dtype),
        ),
        "LayerNorm / linen's": tuple(
            of_module(module, *tokens, dtype=dtype) for module in (LayerNorm(dtype), plain_norm)
        ),
        "attention / jax.nn's": tuple(
            forward_backward(lambda x, form=form: form(*x), *qkv, dtype=dtype)
            for form in (dot_product_attention, jax.nn.dot_product_attention)
        ),
        "convolution module / linen's": (conv_module(ConvModule), conv_module(PlainConvModule)),
        "clustering / gather and scatter": tuple(
            forward_backward(lambda x, form=form: form(x, CELL, DEFAULT_ITERATIONS)[0], *features, dtype=dtype)
            for form in (cluster_super_tokens, FORMS["gather/scatter"])
        ),
    }


def pairs_of_models(batch, dtype):
    """As `pairs_of_parts`, of whole models: the first over the second."""
    images = jax.random.normal(jax.random.key(0), (batch, IMAGE_SIZE, IMAGE_SIZE, 3))
    modes = {}
    for label, name, overrides in (
        ("patch", "vit_s_patch", {}),
        ("T=1", "vit_s_stce", {"iterations": 1}),
        ("T=3", "vit_s_stce", {"iterations": 3}),
    ):
        model = create_model(name, num_classes=CLASSES, image_size=IMAGE_SIZE, dtype=dtype.name, **overrides)
        variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images[:1])
        modes[label] = passes(model, variables, images)
    pairs = {}
    for mode in ("inference", "training"):
        pairs[f"vit_s_stce / vit_s_patch, {mode}"] = modes["T=3"][mode], modes["patch"][mode]
        pairs[f"T=3 / T=1 in vit_s_stce, {mode}"] = modes["T=3"][mode], modes["T=1"][mode]
    return pairs


def measured_ratios(pairs, rounds, clock):
    """dict name -> `Estimate` of the first's time over the second's, within rounds; equal functions run once."""
    functions = {id(function): function for pair in pairs.values() for function in pair}
    seconds = {key: getattr(value, clock) for key, value in interleave(functions, rounds).items()}
    ratios = {}
    for name, pair in pairs.items():
        one, other = (seconds[id(function)] for function in pair)
        ratios[name] = median_estimate(a / b for a, b in zip(one, other, strict=True))
    return ratios


def compare(measured, committed):
    """What became of each ratio.

    Args:
      measured, committed: dicts name -> `Estimate` or [value, margin]; smaller values are better.

    Returns:
      (rows, regressions): one dict a ratio for a table, and one line for each that is worse or no longer measured.
    """
    rows, regressions = [], []
    for name in dict.fromkeys((*committed, *measured)):
        now, then = (Estimate(*ratios[name]) if name in ratios else None for ratios in (measured, committed))
        if now is None:
            verdict = "no longer measured"
            regressions.append(f"{name}: no longer measured; committed is {then}")
        elif then is None:
            verdict = "new"
        elif now.value - now.margin > (then.value + then.margin) * (1 + SLACK):
            verdict = "worse"
            regressions.append(f"{name}: {now}, committed is {then}")
        elif now.value + now.margin < (then.value - then.margin) * (1 - SLACK):
            verdict = "better"
        else:
            verdict = "as committed"
        rows.append({"ratio of times": name, "now": now or "", "committed": then or "", "verdict": verdict})
    return rows, regressions


def read_ratios(path, kind):
    """The committed ratios of a kind of device as dict name -> [value, margin]; None if there are none."""
    kinds = json.loads(path.read_text()) if path.exists() else {}
    return kinds[kind]["ratios"] if kind in kinds else None


def write_ratios(path, kind, ratios, measured_on):
    """Commits the ratios of one kind of device, and keeps those of the others."""
    kinds = json.loads(path.read_text()) if path.exists() else {}
    rounded = {name: [round(number, 4) for number in ratio] for name, ratio in ratios.items()}
    kinds[kind] = {"machine": measured_on, "ratios": rounded}
    path.write_text(json.dumps(kinds, indent=2, sort_keys=True) + "\n")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="commit this run's ratios in place of comparing")
    parser.add_argument("--rounds", type=int, default=12, help=f"of the models, at least {FEWEST_ROUNDS}")
    parser.add_argument("--batch", type=int, help="images at once (4 on a CPU, else 128)")
    parser.add_argument("--models", action=argparse.BooleanOptionalAction, default=True, help="whole models, too")
    parser.add_argument("--ratios", type=Path, default=RATIOS, metavar="PATH", help="the committed ratios")
    options = parser.parse_args(words)
    if options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds {options.rounds}: fewer than {FEWEST_ROUNDS} give no interval to compare by")
    kind, on_cpu = jax.devices()[0].device_kind, jax.default_backend() == "cpu"
    clock, dtype, batch = ("cpu", "float32", 4) if on_cpu else ("wall", "bfloat16", 128)
    committed = read_ratios(options.ratios, kind)
    if committed is None and not options.update:
        parser.error(f"{options.ratios} has no ratios of a {kind} yet; --update writes them")
    batch, dtype = options.batch or batch, jnp.dtype(dtype)
    pairs = pairs_of_parts(batch, dtype)
    ratios = measured_ratios(pairs, 2 * options.rounds, clock)
    if options.models:
        ratios |= measured_ratios(pairs_of_models(batch, dtype), options.rounds, clock)
    committed = {name: ratio for name, ratio in (committed or {}).items() if options.models or name in pairs}
    rows, regressions = compare(ratios, committed)
    print(f"{machine()}; {dtype.name}, batch {batch}, {options.rounds} rounds\n\n{markdown_table(rows)}")
    if options.update:
        write_ratios(options.ratios, kind, ratios, f"{machine()}; batch {batch}, {options.rounds} rounds")
        return
    for line in regressions:
        print(f"regression: {line}", file=sys.stderr)
    sys.exit(bool(regressions))


if __name__ == "__main__":
    main()
