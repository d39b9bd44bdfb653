"""Whether the models of both frameworks compute the same: asked before they are timed against each other."""

import copy
import functools
import sys

import jax
import numpy as np
import optax
import torch
import torch_reference
from torch.nn import functional as F

CHECKED = 8  # images, at most


def allow_tf32(allowed):
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def jax_loss(model, params, batch_stats, images, labels):
    """(mean cross-entropy, (logits, new batch statistics)) in training mode."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (logits, updates.get("batch_stats", {}))


def check_agreement(name, model, variables, reference, jax_batch, torch_batch, tolerances):
    """Ends the program unless logits and all gradients agree in training mode, for the batch's first images."""
    jax_batch, torch_batch = ([part[:CHECKED] for part in batch] for batch in (jax_batch, torch_batch))
    loss = functools.partial(jax_loss, model)
    with jax.default_matmul_precision("highest"):
        gradients, (logits, _) = jax.jit(jax.grad(loss, has_aux=True))(
            variables["params"], variables.get("batch_stats", {}), *jax_batch
        )
    allow_tf32(False)
    reference = copy.deepcopy(reference).train()
    images, labels = torch_batch
    expected = reference(images)
    F.cross_entropy(expected, labels).backward()
    allow_tf32(True)

    logit_error = np.abs(logits - expected.detach().cpu().numpy()).max()
    theirs = torch_reference.gradients(reference)
    # In front of BatchNorm a bias has no gradient but rounding: nothing is compared with less than that.
    rounding = 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    errors = jax.tree.map(
        lambda ours, theirs: np.abs(ours - theirs).max() / max(np.abs(theirs).max(), rounding),
        jax.device_get(gradients),
        theirs,
    )
    path, gradient_error = max(jax.tree_util.tree_leaves_with_path(errors), key=lambda leaf: leaf[1])
    worst = jax.tree_util.keystr(path, simple=True, separator="/")
    found = f"{name}: logits differ by {logit_error:.1e}, gradients by {gradient_error:.1e} of their largest ({worst})"
    print(found, file=sys.stderr)
    if not (logit_error <= tolerances[0] and gradient_error <= tolerances[1]):
        sys.exit("the two models disagree; allowed are {:.0e} and {:.0e}".format(*tolerances))
