"""Which sections of `config.model` a run reads, and what is refused because it would be read by nothing."""

import pytest

from stce_jax.errors import ConfigError
from stce_jax.training.assemble import load_config
from stce_jax.workdir.parts import check_read, chosen


def test_an_override_of_a_module_that_is_not_chosen_is_refused_with_the_way_to_choose_it():
    words = ["--config.model.embedding.patch.patch_size=8"]
    with pytest.raises(ConfigError) as error:
        check_read(words, load_config("digits", words))
    message = str(error.value)
    assert "is an option of the embedding 'patch'; the model's embedding is 'stce'" in message
    assert "--config.model.embedding.name=patch" in message and "\n" not in message


@pytest.mark.parametrize("choice", ["--config.model.name=vit_ti_patch", "--config.model.embedding.name=patch"])
def test_an_override_of_the_chosen_module_passes(choice):
    words = ["--config.model.embedding.patch.patch_size=8", choice, "--config.model.body.vit.depth=1"]
    config = load_config("digits", words)
    check_read(words, config)
    assert chosen(config.model) == {"body": "vit", "embedding": "patch", "reduction": None}
