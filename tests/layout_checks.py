"""What every layout of other libraries' weights must do, on a golden file in its names."""

import jax
import numpy as np
from golden_bodies import flat, golden_body
from golden_files import assert_close

from stce_jax.convert import layouts
from stce_jax.models.factory import create_model
from stce_jax.training.state import abstract_variables
from stce_jax.workdir.weights import unflatten


def check_layout(name, layout, config, left_out=(), **overrides):
    """The layout is recognised, gives the golden logits, fits its model exactly, and is written back to the bit.

    Args:
      name: of a golden file of bodies.
      layout: a name of `layouts.LAYOUTS`.
      config: what the library's config.json would say.
      left_out: names that are no part of the model.
      **overrides: options that neither shapes nor config.json tell.
    """
    golden, _, weights = golden_body(name)
    arrays = {key: array.astype(np.float32) for key, array in weights.items()}
    assert layouts.recognise(arrays.keys()) == layout
    options = layouts.options_of(layout, arrays, config) | overrides
    found, left = layouts.to_ours(layout, arrays, options)
    assert left == sorted(left_out)
    model = create_model(
        layouts.LAYOUTS[layout].PRESET,
        num_classes=golden["logits"].shape[-1],
        image_size=golden["x"].shape[1:3],
        drop_path=0.0,
        **options,
    )
    expected = {path: leaf.shape for path, leaf in flat(abstract_variables(model, golden["x"].shape[1])).items()}
    assert {path: array.shape for path, array in found.items()} == expected
    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(
        unflatten(found), golden["x"].astype(np.float32)
    )
    assert_close(np.asarray(logits), golden["logits"], 1e-5, "logits")
    back = layouts.to_theirs(layout, found, options)
    assert back.keys() == arrays.keys() - set(left_out) - layouts.without_weight(layout, arrays.keys())
    for key, array in back.items():
        np.testing.assert_array_equal(array, arrays[key], err_msg=key)
