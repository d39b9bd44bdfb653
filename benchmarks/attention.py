"""Our attention beside `jax.nn.dot_product_attention`, alone, forward and backward, at ViT-S's shape.

    python benchmarks/attention.py

Shape letters: B batch, N tokens, A attention heads, E width of a head.
"""

import argparse
import functools

import jax
import numpy as np
from measure import interleave, machine, markdown_table, median_estimate

from stce_jax.models.ops.attention import dot_product_attention

HEADS, TOKENS, WIDTH = 6, 197, 64


FORMS = {"jax.nn.dot_product_attention": jax.nn.dot_product_attention, "ours": dot_product_attention}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    shape = (3, arguments.batch, TOKENS, HEADS, WIDTH)
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    functions = {}
    for name, form in FORMS.items():
        gradient = jax.jit(jax.grad(lambda x, form=form: (form(*x) ** 2).sum()))
        functions[name] = functools.partial(gradient, jax.device_put(inputs))
    first, second = (np.asarray(function()) for function in functions.values())
    np.testing.assert_allclose(second, first, atol=1e-4 * np.abs(first).max())
    seconds = interleave(functions, arguments.rounds)
    reference = seconds["jax.nn.dot_product_attention"].cpu
    rows = [
        {
            "form": name,
            "CPU ms": f"{1e3 * np.median(times.cpu):.1f}",
            "of jax.nn's": median_estimate(np.divide(times.cpu, reference)),
        }
        for name, times in seconds.items()
    ]
    print(f"{machine()}; batch {arguments.batch}, forward and backward")
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
