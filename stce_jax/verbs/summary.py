"""`stce models`: what each model costs, in parameters and multiply-adds."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model, list_models
from stce_jax.training.state import abstract_variables


def summarize(pattern="*", *, image_size=224, num_classes=100):
    """Counts for the models whose names fit a shell pattern.

    Args:
      pattern: such as "*_s_*".
      image_size: side of the images in pixels.
      num_classes: classes of the head.

    Returns:
      [{"name", "parameters", "embedding_parameters", "multiply_adds"}, ...]; multiply-adds of one image forward, of
      matrix products and convolutions, as executed: in the last block those of the class token, if that alone is read.

    Raises:
      ConfigError: no model fits, or one cannot take this image size.
    """
    names = list_models(pattern)
    if not names:
        raise ConfigError(f"no model is called {pattern!r}; `stce models` lists all")
    return [_summary(name, image_size, num_classes) for name in names]


def _summary(name, image_size, num_classes):
    model = create_model(name, num_classes=num_classes, image_size=image_size)
    return {"name": name, **count_model(model, image_size)}


def count_model(model, image_size):
    """{"parameters", "embedding_parameters", "multiply_adds"} of a model, see `summarize`; computes nothing."""
    variables = abstract_variables(model, image_size)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return {
        "parameters": count_parameters(variables["params"]),
        "embedding_parameters": count_parameters(variables["params"]["embedding"]),
        "multiply_adds": count_multiply_adds(functools.partial(model.apply, train=False), variables, images),
    }


def count_parameters(params):
    """How many numbers a tree of arrays or ShapeDtypeStructs holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_multiply_adds(function, *args):
    """Multiply-adds of the matrix products and convolutions that a function executes; a scan counts its every turn.

    Of what depends on the platform the default form counts, which has no products with zeros that suit one of them.

    Args:
      function: any traceable function.
      *args: its arguments, arrays or ShapeDtypeStructs.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        output = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += math.prod(output.shape) * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += math.prod(output.shape) * math.prod(kernel) // kernel[features]
        elif equation.primitive.name == "cond":
            total += _count(equation.params["branches"][-1].jaxpr)
        else:
            turns = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += turns * sum(_count(inner) for inner in jaxprs_in_params(equation.params))
    return total
