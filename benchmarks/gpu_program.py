"""What a GPU would read and write in a training step, from the program that XLA compiles for it; no GPU is needed.

    pip install ".[cuda12]"                                      in an environment of its own
    python benchmarks/gpu_program.py --write                     as shipped, with remat, and with each form for GPUs
    python benchmarks/gpu_program.py --kernels 40 --forms        the largest kernels of the step as it is shipped

JAX's plugin for CUDA compiles for a described device, here an H200. It cannot try out kernels there, so products are
all XLA's own and not cuBLAS's, and what a product's library would fuse into it (a bias, a sum) is a pass here. What a
kernel reads and writes is counted by the arrays that it takes and gives, none of which is assumed to stay in a cache.
What the step needs is XLA's plan of its memory beside parameters and images. The optimizer is left out.
"""

import argparse
import collections
import functools
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from documents import command, write_section
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from measure import markdown_table
from training import CLASSES, loss_of

from stce_jax.models.factory import create_model
from stce_jax.models.ops import attention, fused
from stce_jax.models.ops.forms import GPU_FORMS, gpu_forms
from stce_jax.models.ops.parts import whole_batches

DEVICE = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 150000000000
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H200"
"""
BANDWIDTH = 4.3e12  # bytes/s that a big copy reaches on an H200
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"f64": 8, "s64": 8, "u64": 8}
MOVES_NOTHING = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}
PARTS = ("products", "convolutions", "attention", "its cutting", "norms, sums", "MLP", "stem", "other")


def compile_step(name, batch, image_size, dtype, depth=None, *, forms=(), remat=False):
    """The compiled program of loss and gradients for the described device."""
    topology = topologies.get_topology_desc("h200", platform="cuda", target_config=DEVICE, topology="1x1x1")
    own = NamedSharding(Mesh(np.array(topology.devices[:1]), ("data",)), PartitionSpec())
    options = {"remat": remat, **({"depth": depth} if depth else {})}
    model = create_model(name, num_classes=CLASSES, image_size=image_size, dtype=dtype, **options)
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

    others = {key: value for key, value in variables.items() if key != "params"}
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    operands = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
        (variables["params"], others, images, labels),
    )
    attention.has_fused_kernel = fused.has_fused_kernel = lambda width, dtype: jnp.dtype(dtype).itemsize == 2
    with gpu_forms(*forms), whole_batches():
        return jax.jit(jax.value_and_grad(loss_of(model), has_aux=True)).lower(*operands).compile()


def bytes_of(shapes):
    """Bytes of the arrays in a text such as `(bf16[2,3]{1,0}, f32[4])`."""
    return sum(
        BYTES[dtype] * int(np.prod([int(side) for side in sides.split(",") if side]))
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
        if dtype in BYTES
    )


def kernels(program):
    """[(bytes read and written, part of PARTS, name, operation)] of what the program runs, one after the other."""
    found, shapes = [], {}
    for line in program[program.index("\nENTRY") :].splitlines():
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)", line)
        if not match:
            continue
        name, shape, kind, operands = match.groups()
        shapes[name] = shape
        if kind in MOVES_NOTHING:
            continue
        moved = bytes_of(shape) + sum(bytes_of(shapes.get(own, "")) for own in re.findall(r"%([\w.\-]+)", operands))
        operation = (re.search(r'op_name="([^"]*)"', line) or ["", ""])[1]
        found.append((moved, part_of(line, operation), name, operation))
    return found


def part_of(line, operation):
    """Which of PARTS a kernel belongs to."""
    target = (re.search(r'custom_call_target="([^"]*)"', line) or ["", ""])[1]
    if "fmha" in target:
        return "attention"
    if "cudnn$conv" in target:
        return "convolutions"
    if "cublas" in target or re.search(r"calls=%gemm_fusion", line):
        return "products"
    if "embedding" in operation:
        return "stem"
    if "_norm" in operation or (operation.endswith(("/add", "/add_any")) and "mlp" not in operation):
        return "norms, sums"
    return "MLP" if "/mlp" in operation else "its cutting" if "/attention" in operation else "other"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_s_stce")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--depth", type=int, help="blocks, if not the model's")
    parser.add_argument("--forms", nargs="*", choices=tuple(GPU_FORMS), default=list(GPU_FORMS))
    parser.add_argument("--kernels", type=int, default=0, help="how many of the largest to name")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    arguments = parser.parse_args()
    made_by = command()  # with the user's own flags alone
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    jax.config.update("jax_platforms", "cpu")
    variants = {"as shipped": {}, "remat": {"remat": True}}
    variants |= {form: {"forms": (form,)} for form in arguments.forms}
    blocks = [form for form in arguments.forms if form.startswith("blocks_of")]
    if len(arguments.forms) > 1:  # of the first convolution's forms there can be one
        variants["all"] = {"forms": [form for form in arguments.forms if form not in blocks[1:]]}
    rows = []
    setting = (arguments.model, arguments.batch, arguments.image_size, arguments.dtype, arguments.depth)
    for name, options in variants.items():
        try:
            program = compile_step(*setting, **options)
        except (RuntimeError, NotImplementedError) as error:
            sys.exit(f'no program for a GPU: {error}\nit needs the CUDA plugin of JAX: pip install ".[cuda12]"')
        found, kept = kernels(program.as_text()), program.memory_analysis().temp_size_in_bytes
        moved = collections.Counter()
        for size, part, *_ in found:
            moved[part] += size / arguments.batch / 1e6
        total = moved.total()
        rows.append(
            {"step": name, "kernels": len(found)}
            | {part: f"{moved[part]:.1f}" for part in PARTS}
            | {"all, MB an image": f"{total:.1f}", "ms": f"{1e9 * total * arguments.batch / BANDWIDTH:.1f}"}
            | {"needs, MB an image": f"{kept / arguments.batch / 1e6:.1f}"}
        )
        print(rows[-1], flush=True)
        for size, part, kernel, operation in sorted(found, reverse=True)[: arguments.kernels]:
            print(f"{size / arguments.batch / 1e6:8.2f} MB an image  {part:12} {kernel:32} {operation[-80:]}")
    text = (
        f"`{arguments.model}`, {arguments.batch} images of {arguments.image_size} pixels, {arguments.dtype}, jax "
        f"{jax.__version__}; MB an image that each part reads and writes, what that takes at "
        f"{BANDWIDTH / 1e12:g} TB/s, and what the step needs:\n\n{markdown_table(rows)}"
    )
    if arguments.write:
        write_section("gpu program", text, made_by)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
