"""timm's ViT and DeiT: read to the golden logits, written back to the bit."""

import pytest
from layout_checks import check_layout


@pytest.mark.parametrize("name", ["vit_timm_tiny", "deit_distilled_tiny"])
def test_the_golden_models(name):
    check_layout(name, "timm_vit", {"model_args": {"num_heads": 3}})
