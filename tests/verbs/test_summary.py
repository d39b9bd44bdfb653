"""`stce models` counts what options of models cost, as the documents say it."""

import re
from pathlib import Path

import pytest

from stce_jax.errors import ConfigError
from stce_jax.verbs.summary import summarize

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.slow
def test_stce_models_counts_with_options():
    plain, registers, both = (
        summarize("vit_ti_patch", image_size=32, options=options)[0]["parameters"]
        for options in ("", "registers=2", "registers=2,norm=rmsnorm")
    )
    assert registers == plain + 2 * 192 and both == registers - (2 * 12 + 1) * 192
    for options, message in {
        "registers": "give OPTION=VALUE",
        "=4": "give OPTION=VALUE",
        "image_size=32": "image_size is no option",
        "cell=2": "vit_ti_patch has no option 'cell'",
    }.items():
        with pytest.raises(ConfigError, match=message) as refused:
            summarize("vit_ti_patch", options=options)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_documents_say_what_each_costs():
    rows = re.findall(
        r"^\| `([a-z_]+=[^`]*)` \|.*\| ([-+][\d,]+|0) \| ([-+][\d,]+|0) \|$", DOCUMENT.read_text("utf-8"), re.M
    )
    (plain,) = summarize("vit_s_patch")
    assert len(rows) >= 7
    for options, *costs in rows:
        (row,) = summarize("vit_s_patch", options=options)
        found = [row[name] - plain[name] for name in ("parameters", "multiply_adds")]
        assert found == [int(cost.replace(",", "")) for cost in costs], options
