"""huggingface_hub reads the card that `stce export --format=huggingface` wrote, and finds its metadata whole."""

import pytest
from made_runs import TINY_VIT, made_run

from stce_jax.convert import formats, hub

huggingface_hub = pytest.importorskip("huggingface_hub")

MEASURED = {"images": 200, "top1": 0.75, "top5": 1.0, "split": "val", "dataset": "digits", "interval": (0.68, 0.8)}


def test_the_card_loads(tmp_path):
    run = made_run("deit_ti", class_names=("a", "b: c", "---", '"', "# x"), patch_size=8, **TINY_VIT)
    known = {"fingerprint": "0123abc", "during_training": None, "evaluation": MEASURED}
    formats.write("huggingface", tmp_path, run, ema=False, license="cc-by-4.0", known=known)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "stce_jax" and card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "image-classification" and "deit" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.75, "digits")
    assert "| `optimizer.name` | `adamw` |" in card.text


def test_the_library_has_what_push_calls():
    hub.check("me/model")
    assert callable(huggingface_hub.create_repo) and callable(huggingface_hub.upload_folder)
    import inspect

    made = inspect.signature(huggingface_hub.create_repo).parameters
    sent = inspect.signature(huggingface_hub.upload_folder).parameters
    assert {"repo_type", "private", "exist_ok"} <= made.keys()
    assert {"repo_id", "folder_path", "commit_message"} <= sent.keys()
