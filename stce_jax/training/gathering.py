"""Parameters that are split over devices, gathered for what computes with them: fully sharded data parallelism.

Left alone, XLA sends activations to the parameters where these are the larger, or keeps what it gathered until the
backward pass. Here each array is gathered where it is used, forgotten, gathered again for the backward pass, and its
gradient is left split (Zhao et al. 2023, arXiv 2304.11277; Rajbhandari et al. 2020, arXiv 1910.02054, stage 3). Arrays
are gathered one by one, in whatever order XLA's scheduler wants them: no body needs to know.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, NamedSharding

from stce_jax.models.bodies import Body
from stce_jax.training.mesh import replicated, state_shardings

# Computed again in the backward pass: the gathering, and what only lays out anew what was gathered.
_AGAIN = {"sharding_constraint", "reshape", "transpose", "convert_element_type", "squeeze", "broadcast_in_dim"}


def gathering_apply(model: Body, mesh: Mesh) -> Callable[..., Any]:
    """`model.apply` for variables that lie on a mesh as `state_shardings` says; the model's own if none is split."""
    if mesh.shape["fsdp"] == 1:
        return model.apply

    def apply(variables: Any, *inputs: Any, **options: Any) -> Any:
        def run(variables: Any, *inputs: Any) -> Any:
            params = gathered(variables["params"], mesh)
            return model.apply({**variables, "params": params}, *inputs, **options)

        return jax.checkpoint(run, policy=_keep_all_else)(variables, *inputs)

    return apply


def gathered(params: Any, mesh: Mesh) -> Any:
    """Parameters as they are, whole on every device; their gradients are split as they were."""
    return jax.tree.map(lambda param, split: _gather(param, split, mesh), params, state_shardings(params, mesh))


def _gather(param: jax.Array, split: NamedSharding, mesh: Mesh) -> jax.Array:
    @jax.custom_vjp
    def gather(param: jax.Array) -> jax.Array:
        return with_sharding_constraint(param, replicated(mesh))

    gather.defvjp(
        lambda param: (with_sharding_constraint(param, replicated(mesh)), None),
        lambda _, gradient: (with_sharding_constraint(gradient, split),),
    )
    return param if split.is_fully_replicated else gather(param)


def _keep_all_else(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: what the backward pass needs is kept, but for what is cheap to gather again."""
    return primitive.name not in _AGAIN
