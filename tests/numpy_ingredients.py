"""The vision transformer's newer ingredients in plain NumPy, float64: each as its paper has it, head by head.

What a model has is read off its parameters, but for fixed rotary positions, which have none.
"""

import math

import numpy as np
from numpy_reference import dense, gelu, layer_norm, softmax


def rms_norm(x, params, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * params["scale"]


def norm(x, params):
    return layer_norm(x, params) if "bias" in params else rms_norm(x, params)


def axial_frequencies(width):
    """(of columns, of rows) for the pairs of a head: theta 100, first columns, then rows."""
    steps = [100.0 ** (-4.0 * k / width) for k in range(width // 4)]
    zeros = [0.0] * len(steps)
    return np.array([steps + zeros, zeros + steps])


def turn(x, places, frequencies):
    """One head's [N, E] as E / 2 complex numbers, each turned by its angle; a place None is not turned."""
    turned = np.array(x, float)
    for token, place in enumerate(places):
        if place is None:
            continue
        row, column = place
        angles = column * frequencies[0] + row * frequencies[1]
        numbers = (x[token, 0::2] + 1j * x[token, 1::2]) * np.exp(1j * angles)
        turned[token, 0::2], turned[token, 1::2] = numbers.real, numbers.imag
    return turned


def attention(x, params, heads, places, rotary):
    batch, count, width = x.shape
    size = width // heads
    qkv = dense(x, params["qkv"]).reshape(batch, count, 3, heads, size)
    out = np.zeros((batch, count, heads, size))
    for image in range(batch):
        for head in range(heads):
            query, key, value = (qkv[image, :, part, head] for part in range(3))
            if "query_norm" in params:
                query, key = norm(query, params["query_norm"]), norm(key, params["key_norm"])
            if rotary:
                mixed = params["frequencies"][:, head] if "frequencies" in params else axial_frequencies(size)
                query, key = turn(query, places[image], mixed), turn(key, places[image], mixed)
            out[image, :, head] = softmax(query @ key.T / math.sqrt(size)) @ value
    return dense(out.reshape(batch, count, width), params["out"])


def mlp(x, params):
    hidden = dense(x, params["in"])
    if params["in"]["kernel"].shape[1] == params["out"]["kernel"].shape[0]:
        return dense(gelu(hidden), params["out"])
    gate, values = np.split(hidden, 2, axis=-1)
    return dense(gate / (1.0 + np.exp(-gate)) * values, params["out"])


def vision_transformer(tokens, params, heads, grid, rotary=False):
    """Embedded tokens [B, N, D] -> logits [B, classes], read off the class token."""
    batch, places = len(tokens), [divmod(token, grid[1]) for token in range(tokens.shape[1])]
    if "position_embedding" in params:
        tokens = tokens + params["position_embedding"][:, 1:]
        first = params["class_token"] + params["position_embedding"][:, :1]
    else:
        first = params["class_token"]
    front = np.concatenate([first, params["registers"]], axis=1) if "registers" in params else first
    x = np.concatenate([np.repeat(front, batch, axis=0), tokens], axis=1)
    places = [[None] * front.shape[1] + places] * batch
    for index in range(sum(name.startswith("blocks_") for name in params)):
        block = params[f"blocks_{index}"]
        scales = [block[name]["scale"] if name in block else 1.0 for name in ("attention_scale", "mlp_scale")]
        branch = attention(norm(x, block["attention_norm"]), block["attention"], heads, places, rotary)
        x = x + scales[0] * branch
        x = x + scales[1] * mlp(norm(x, block["mlp_norm"]), block["mlp"])
    return dense(norm(x, params["norm"])[:, 0], params["head"])
