"""FLOPs and bytes of a model's operations, counted by hand: what benchmarks/roofline.py holds measurements against.

Every operation is a closed formula of the model's options: FLOPs (two a multiply-add; of products alone) and the bytes
that it must read and write if everything elementwise between two products is a single pass, and nothing stays in a
cache from one operation to the next. It takes at least max(FLOPs / peak, bytes / bandwidth); operations follow one
another.

Shape letters: B batch; H W image or feature height and width; C channels; N tokens (class token included); D model
width; A heads; K = 9 neighbours.
"""

import functools
from typing import NamedTuple

from stce_jax.models.factory import model_options
from stce_jax.models.ops.supertoken import cell_shape, grid_shape

CLASSES = 100
FLOAT = 4  # bytes of a parameter, of the clustering's numbers, of logits of attention
NEIGHBOURS = 9
CLUSTERING, OPTIMIZER = "clustering", "optimizer"


class Work(NamedTuple):
    """An operation: the part of the model it belongs to, its FLOPs, and the bytes that it reads and writes."""

    part: str
    flops: float
    bytes: float


def product(part, rows, inputs, outputs, size, *, training, read=None, input_gradient=True):
    """A linear layer or convolution: rows x inputs numbers times a kernel of inputs x outputs.

    Each of the backward pass's two products, for the inputs and for the kernel, has as many FLOPs and touches the same
    three arrays. `size` is bytes a number; `read` how many numbers are read where that is not rows x inputs.
    """
    read = rows * inputs if read is None else read
    work = Work(part, 2 * rows * inputs * outputs, size * (read + rows * outputs) + FLOAT * inputs * outputs)
    return [work] * (1 + training * (1 + input_gradient))


def passes_over(part, numbers, size, *, training, forward, backward):
    """Elementwise work: `numbers` are read or written `forward` times forward, and `backward` times backward."""
    times = forward + (backward if training else 0)
    return [Work(part, 0, times * numbers * size)]


def conv_module(name, batch, shape, channels, width, stride, size, *, training, kernel=3, first=False, norm=True):
    """(work, shape of the output [H, W]) of a convolution, with GELU (or ReLU) and BatchNorm if `norm`.

    An image needs no gradient. BatchNorm's statistics need a pass of their own in training: forward it is read twice
    and written once. Backward, two sums over gradient and input come first, then both are read again and one written.
    """
    inputs = batch * shape[0] * shape[1] * channels
    shape = tuple(-(-side // stride) for side in shape)
    rows = batch * shape[0] * shape[1]
    taps = kernel * kernel * channels
    work = product(name, rows, taps, width, size, training=training, read=inputs, input_gradient=not first)
    if norm:
        forward = 3 if training else 2
        work += passes_over(f"{name}: GELU, norm", rows * width, size, training=training, forward=forward, backward=5)
    return work, shape


def clustering(batch, shape, channels, cell, iterations, *, training, seen=NEIGHBOURS):
    """The means, then T times affinities and weighted means, in float32, of a map [H, W] of C channels.

    A token is multiplied with `seen` super tokens, of which the idea needs nine; the products that are shipped take in
    a few more and mask them. Affinities are written as logits, read and written by the softmax, and read again. The
    gradient is one product: the last affinities, kept, with the super tokens' gradient.
    """
    rows, columns = grid_shape(*shape, cell)
    super_tokens = batch * rows * columns * channels
    tokens = batch * rows * columns * cell_shape(cell)[0] * cell_shape(cell)[1]
    work = [Work(CLUSTERING, 0, FLOAT * (tokens * channels + super_tokens))]
    touched = FLOAT * (tokens * channels + super_tokens + tokens * seen)
    one_product = Work(CLUSTERING, 2 * tokens * seen * channels, touched)
    softmax = Work(CLUSTERING, 0, 2 * FLOAT * tokens * seen)
    return work + iterations * [one_product, softmax, one_product] + training * [one_product]


def embedding_work(name, options, batch, image, size, *, training):
    """(work, number of tokens) of a model's embedding."""
    kind, width = name.split("_")[2], options["width"]
    if kind == "patch":
        patch = options["patch_size"]
        count, inputs = batch * (image[0] // patch) * (image[1] // patch), 3 * patch * patch
        norms = functools.partial(passes_over, "patches: norms", size=size, training=training, forward=2, backward=3)
        work = norms(count * inputs) + product("projection", count, inputs, width, size, training=training)
        return work + norms(count * width), count // batch
    work, shape, channels = [], image, 3
    for index, (features, stride) in enumerate(zip(options["stem_widths"], options["stem_strides"], strict=True), 1):
        last = kind == "conv1x1" and index == len(options["stem_widths"])
        own, shape = conv_module(
            f"module {index}",
            batch,
            shape,
            channels,
            features,
            stride,
            size,
            training=training,
            kernel=1 if last else 3,
            first=index == 1,
        )
        work, channels = work + own, features
    if kind == "stce":
        if options["iterations"]:
            work += clustering(batch, shape, channels, options["cell"], options["iterations"], training=training)
        else:
            work += [Work(CLUSTERING, 0, (1 + training) * FLOAT * batch * shape[0] * shape[1] * channels)]
        shape = grid_shape(*shape, options["cell"])
    count = shape[0] * shape[1]
    if kind in ("stce", "earlyconv"):
        work += product("projection", batch * count, channels, width, size, training=training)
    return work, count


def attention_products(batch, queries, count, width, heads, size, *, training, fused):
    """The two products with the softmax between them, of `queries` and `count` keys.

    Written apart, as XLA does it, the logits, N x N if every token is a query, are written in float32 and read by the
    softmax, and the weights are written and read; backward there are four products, and logits' and weights' gradients
    come on top. A fused kernel keeps all of them on the chip and recomputes the logits in the backward pass, a fifth
    product; it is used where every token is a query.
    """
    name, square = "attention: products", batch * heads * queries * count
    both = batch * (queries + count) * width * size  # queries and keys; outputs and values are as large
    flops = 2 * batch * queries * count * width
    if fused and queries == count:
        work = [Work(name, 2 * flops, 2 * both)]
        return work + training * [Work(name, 5 * flops, 4 * both)]
    logits, weights = FLOAT * square, size * square
    forward = [Work(name, flops, both + logits), Work(name, 0, logits + weights)]
    forward += [Work(name, flops, weights + both)]
    dvalue, dweights = Work(name, flops, weights + both), Work(name, flops, both + logits)
    dlogits = Work(name, 0, logits + weights + weights)  # the weights' gradient and the weights in, the logits' out
    dquery_or_dkey = Work(name, flops, weights + both)
    return forward + training * [dvalue, dweights, dlogits, dquery_or_dkey, dquery_or_dkey]


def block_work(options, batch, count, kept, size, *, training, fused):
    """A block whose keys and values are `count` tokens, and which computes the first `kept` of them."""
    width, hidden = options["width"], options["mlp_dim"]
    rows, left = batch * count, batch * kept
    linear = functools.partial(product, size=size, training=training)
    # A residual sum and the norm after it: two read, two written, forward and backward.
    norm = functools.partial(passes_over, "norms, residuals", size=size, training=training, forward=4, backward=4)
    # Queries that are not all tokens come from a product of their own.
    queries = linear("attention: linear", left, width, 3 * width) if kept < count else []
    return (
        norm(rows * width)
        + linear("attention: linear", rows, width, 3 * width)
        + queries
        + attention_products(batch, kept, count, width, options["heads"], size, training=training, fused=fused)
        + linear("attention: linear", left, width, width)
        + norm(left * width)
        + linear("MLP: linear", left, width, hidden)
        + passes_over("MLP: GELU", left * hidden, size, training=training, forward=2, backward=3)
        + linear("MLP: linear", left, hidden, width)
    )


def body_work(options, batch, count, size, *, training, fused):
    """Everything between the embedding's tokens and the loss; the last block as `VisionTransformer` computes it."""
    width = options["width"]
    kept = 1 if options["pooling"] == "class" and not options["scan_layers"] else count
    block = functools.partial(block_work, options, batch, count, size=size, training=training, fused=fused)
    positions = passes_over("positions", batch * count * width, size, training=training, forward=2, backward=1)
    norm = passes_over("norms, residuals", batch * kept * width, size, training=training, forward=2, backward=3)
    head = product("head", batch, width, CLASSES, size, training=training)
    return positions + (options["depth"] - 1) * block(kept=count) + block(kept=kept) + norm + head


def model_work(name, *, batch, image_size, size, training, fused=False, parameters=0, **overrides):
    """All operations of an inference, or of a training step of AdamW, as [Work, ...] in order.

    Args:
      name, overrides: see `create_model`.
      batch, image_size: images, and their side in pixels.
      size: bytes of a number of the computation: 4, or 2 for bfloat16.
      training: forward and backward; and, for `parameters` > 0, AdamW's pass over parameters, gradients and moments.
      fused: whether attention is one kernel.
    """
    options = model_options(name, **overrides)
    image = (image_size, image_size)
    work, count = embedding_work(name, options, batch, image, size, training=training)
    count += options["pooling"] == "class"
    work = work + body_work(options, batch, count, size, training=training, fused=fused)
    # Parameter, gradient and two moments in, all but the gradient out; the gradient's norm reads it once more.
    return [*work, Work(OPTIMIZER, 0, 8 * FLOAT * parameters)] if training and parameters else work


def predicted_seconds(work, peak, bandwidth):
    """The minimum of the operations, one after the other, on a machine of `peak` FLOP/s and `bandwidth` bytes/s."""
    return sum(max(one.flops / peak, one.bytes / bandwidth) for one in work)


def part_rows(work, batch, peak, bandwidth):
    """One row a part: FLOPs and bytes of an image, and the share of the predicted time."""
    total = predicted_seconds(work, peak, bandwidth)
    rows = []
    for part in dict.fromkeys(one.part for one in work):
        own = [one for one in work if one.part == part]
        flops, size = sum(one.flops for one in own), sum(one.bytes for one in own)
        seconds = predicted_seconds(own, peak, bandwidth)
        rows.append(
            {
                "part": part,
                "GFLOP": f"{flops / batch / 1e9:.3f}",
                "MB": f"{size / batch / 1e6:.1f}",
                "FLOP a byte": f"{flops / size:.0f}",
                "bound by": "arithmetic" if flops / peak > size / bandwidth else "memory",
                "share of time": f"{seconds / total:.1%}",
            }
        )
    return rows
