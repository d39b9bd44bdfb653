"""Train, compare and reuse vision-transformer embeddings in JAX.

Train and use      load_config, train, evaluate, predict, features, load_run (-> Run), load_exported
Models             create_model, list_models, load_weights, cluster_super_tokens, SuperTokenConvEmbed, Tokens
Data               open_dataset (-> Dataset), train_batches, eval_batches, build_augment
Namespaces         embeddings, reductions, augment (single operations of the augmentation), errors

The names are imported when first used, so that importing the package starts nothing. docs/python.md shows them at work.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {  # name -> the module that has it; type checkers read the imports below, which say the same
    "Dataset": "stce_jax.data.dataset",
    "Run": "stce_jax.training.assemble",
    "SuperTokenConvEmbed": "stce_jax.models.embeddings.stce",
    "Tokens": "stce_jax.models.tokens",
    "build_augment": "stce_jax.training.assemble",
    "cluster_super_tokens": "stce_jax.models.ops.supertoken",
    "create_model": "stce_jax.models.factory",
    "eval_batches": "stce_jax.training.batches",
    "evaluate": "stce_jax.verbs.evaluate",
    "features": "stce_jax.verbs.features",
    "list_models": "stce_jax.models.factory",
    "load_config": "stce_jax.training.assemble",
    "load_exported": "stce_jax.convert.program",
    "load_run": "stce_jax.training.assemble",
    "load_weights": "stce_jax.convert.loading",
    "open_dataset": "stce_jax.training.assemble",
    "predict": "stce_jax.verbs.predict",
    "train": "stce_jax.verbs.train",
    "train_batches": "stce_jax.training.batches",
}
_NAMESPACES = {
    "augment": "stce_jax.recipe.augment",
    "embeddings": "stce_jax.models.embeddings",
    "errors": "stce_jax.errors",
    "reductions": "stce_jax.models.reductions",
}
__all__ = [*_HOMES, *_NAMESPACES]

if TYPE_CHECKING:
    from stce_jax import errors as errors
    from stce_jax.convert.loading import load_weights as load_weights
    from stce_jax.convert.program import load_exported as load_exported
    from stce_jax.data.dataset import Dataset as Dataset
    from stce_jax.models import embeddings as embeddings
    from stce_jax.models import reductions as reductions
    from stce_jax.models.embeddings.stce import SuperTokenConvEmbed as SuperTokenConvEmbed
    from stce_jax.models.factory import create_model as create_model
    from stce_jax.models.factory import list_models as list_models
    from stce_jax.models.ops.supertoken import cluster_super_tokens as cluster_super_tokens
    from stce_jax.models.tokens import Tokens as Tokens
    from stce_jax.recipe import augment as augment
    from stce_jax.training.assemble import Run as Run
    from stce_jax.training.assemble import build_augment as build_augment
    from stce_jax.training.assemble import load_config as load_config
    from stce_jax.training.assemble import load_run as load_run
    from stce_jax.training.assemble import open_dataset as open_dataset
    from stce_jax.training.batches import eval_batches as eval_batches
    from stce_jax.training.batches import train_batches as train_batches
    from stce_jax.verbs.evaluate import evaluate as evaluate
    from stce_jax.verbs.features import features as features
    from stce_jax.verbs.predict import predict as predict
    from stce_jax.verbs.train import train as train
else:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name in _NAMESPACES:
            return importlib.import_module(_NAMESPACES[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
