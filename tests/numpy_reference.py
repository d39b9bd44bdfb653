"""The models in plain NumPy, float64, written for reading: the truth that the tests hold the JAX code against."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def gelu(x):
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def layer_norm(x, params, epsilon=1e-6):
    normed = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    return normed * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def convolution(x, kernel, stride, margin):
    """[B, H, W, C], [k, k, C, F] -> [B, H', W', F], padded with `margin` zeros on every side."""
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows = (x.shape[1] - size) // stride + 1
    columns = (x.shape[2] - size) // stride + 1
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            window = x[:, row * stride : row * stride + size, column * stride : column * stride + size]
            out[:, row, column] = np.einsum("bijc,ijcf->bf", window, kernel)
    return out


def batch_norm(x, params, stats=None, epsilon=1e-5):
    """With the batch's own statistics (training), or the given running ones."""
    mean = x.mean(axis=(0, 1, 2)) if stats is None else stats["mean"]
    variance = x.var(axis=(0, 1, 2)) if stats is None else stats["var"]
    return (x - mean) / np.sqrt(variance + epsilon) * params["scale"] + params["bias"]


def cluster_super_tokens(features, cell, iterations, border="zero"):
    """Token by token, neighbour by neighbour: (tokens [B, h, w, C], affinity [B, h*rows, w*columns, 9])."""
    cell_rows, cell_columns = cell
    batch, height, width, channels = features.shape
    rows, columns = -(-height // cell_rows), -(-width // cell_columns)
    x = np.zeros((batch, rows * cell_rows, columns * cell_columns, channels))
    x[:, :height, :width] = features
    tokens = x.reshape(batch, rows, cell_rows, columns, cell_columns, channels).mean(axis=(2, 4))
    affinity = np.zeros((*x.shape[:3], 9))
    for _ in range(iterations):
        sums, shares = np.zeros_like(tokens), np.zeros(tokens.shape[:3])
        for b, y, z in np.ndindex(x.shape[:3]):
            logits = np.zeros(9)
            cells = [(y // cell_rows + dy, z // cell_columns + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            inside = [0 <= i < rows and 0 <= j < columns for i, j in cells]
            for k, (i, j) in enumerate(cells):
                if inside[k]:
                    logits[k] = x[b, y, z] @ tokens[b, i, j] / math.sqrt(channels)
                elif border == "mask":
                    logits[k] = -np.inf
            affinity[b, y, z] = softmax(logits)
            for k, (i, j) in enumerate(cells):
                if inside[k]:
                    sums[b, i, j] += affinity[b, y, z, k] * x[b, y, z]
                    shares[b, i, j] += affinity[b, y, z, k]
        tokens = sums / (shares[..., None] + 1e-12)
    return tokens, affinity


def association_matrix(affinity, cell):
    """Affinities [B, h*rows, w*columns, 9] as matrices [B, h*rows * w*columns, h * w], without what leaves the grid."""
    cell_rows, cell_columns = cell
    batch, height, width, _ = affinity.shape
    rows, columns = height // cell_rows, width // cell_columns
    dense = np.zeros((batch, height, width, rows, columns))
    for y, z, k in np.ndindex(height, width, 9):
        i, j = y // cell_rows + k // 3 - 1, z // cell_columns + k % 3 - 1
        if 0 <= i < rows and 0 <= j < columns:
            dense[:, y, z, i, j] = affinity[:, y, z, k]
    return dense.reshape(batch, height * width, rows * columns)


def aggregate(values, affinity, cell):
    """Values [B, H, W, C], padded with zeros -> A^T X / (sum A + 1e-12), [B, h, w, C]."""
    batch, height, width, channels = values.shape
    padded = np.zeros((*affinity.shape[:3], channels))
    padded[:, :height, :width] = values
    dense = association_matrix(affinity, cell)
    means = dense.transpose(0, 2, 1) @ padded.reshape(batch, -1, channels) / (dense.sum(axis=1)[..., None] + 1e-12)
    return means.reshape(batch, affinity.shape[1] // cell[0], affinity.shape[2] // cell[1], channels)


def scatter(super_tokens, affinity, cell, size):
    """Super tokens [B, h, w, C] -> A S without the padding, [B, *size, C]."""
    batch, _, _, channels = super_tokens.shape
    pixels = association_matrix(affinity, cell) @ super_tokens.reshape(batch, -1, channels)
    return pixels.reshape(*affinity.shape[:3], channels)[:, : size[0], : size[1]]


def attention(x, params, heads):
    batch, count, width = x.shape
    qkv = dense(x, params["qkv"]).reshape(batch, count, 3, heads, width // heads)
    out = np.zeros((batch, count, heads, width // heads))
    for b in range(batch):
        for head in range(heads):
            query, key, value = qkv[b, :, 0, head], qkv[b, :, 1, head], qkv[b, :, 2, head]
            out[b, :, head] = softmax(query @ key.T / math.sqrt(width // heads)) @ value
    return dense(out.reshape(batch, count, width), params["out"])


def patch_embed(images, params, patch):
    batch, height, width, _ = images.shape
    patches = [
        images[:, i : i + patch, j : j + patch].reshape(batch, -1)
        for i in range(0, height, patch)
        for j in range(0, width, patch)
    ]
    normed = layer_norm(np.stack(patches, axis=1), params["patch_norm"])
    return layer_norm(dense(normed, params["projection"]), params["norm"])


def conv_stack(images, params, stats, strides):
    """Modules of Eq. 1, in evaluation mode."""
    for index, stride in enumerate(strides, start=1):
        module, running = params[f"module_{index}"], stats[f"module_{index}"]["norm"]
        kernel = module["convolution"]["kernel"]
        features = convolution(images, kernel, stride, kernel.shape[0] // 2) + module["convolution"]["bias"]
        images = batch_norm(gelu(features), module["norm"], running)
    return images


def vision_transformer(tokens, params, heads):
    """Embedded tokens [B, N, D] -> logits [B, classes]: class token, learned positions, pre-norm blocks, head."""
    first = np.repeat(params["class_token"], len(tokens), axis=0)
    tokens = np.concatenate([first, tokens], axis=1) + params["position_embedding"]
    for index in range(sum(name.startswith("blocks_") for name in params)):
        block = params[f"blocks_{index}"]
        tokens = tokens + attention(layer_norm(tokens, block["attention_norm"]), block["attention"], heads)
        hidden = gelu(dense(layer_norm(tokens, block["mlp_norm"]), block["mlp"]["in"]))
        tokens = tokens + dense(hidden, block["mlp"]["out"])
    return dense(layer_norm(tokens, params["norm"])[:, 0], params["head"])


def weighted_cross_entropy(logits, targets, weights):
    """(losses, their mean): -sum_c w_c log(p_c) y_c, over N, as PyTorch documents it for targets of probabilities."""
    log_p = np.log(softmax(logits))
    losses = [
        -sum(w * p * y for w, p, y in zip(weights, *row, strict=True)) for row in zip(log_p, targets, strict=True)
    ]
    return np.array(losses), sum(losses) / len(losses)
