"""What comes along with weights: how images are seen, and which classes there are."""

import numpy as np
import pytest
import safetensors.numpy
from weight_sources import HUGGING_FACE, SIZE, TIMM, noise, write_folder

from stce_jax.convert.preprocessing import of_hugging_face, of_timm
from stce_jax.convert.sources import open_source
from stce_jax.data import class_lists
from stce_jax.errors import CheckpointError


def test_preprocessing_and_classes_of_timm(tmp_path):
    theirs, _, _ = noise()
    names = ["cat", "dog", "cow", "dog", "pig"]
    config = TIMM | {"label_names": names, "label_descriptions": {name: f"a {name}" for name in names}}
    opened = open_source(write_folder(tmp_path / "a", theirs, config))
    seen = opened.preprocessing
    assert seen.mean == (0.5, 0.4, 0.3) and seen.std == (0.5, 0.25, 0.2) and seen.image_size == (SIZE, SIZE)
    assert seen.summary() == "mean 0.5,0.4,0.3, std 0.5,0.25,0.2, bilinear, crop 0.9"
    assert opened.labels.ids == ("cat", "dog", "cow", "dog (3)", "pig") and opened.labels.names[3] == "a dog"
    assert not opened.guessed and opened.options["heads"] == 2


@pytest.mark.parametrize(
    "processor, fraction, note",
    [
        (
            {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            1.0,
            True,
        ),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, 0.8, False),
        ({"size": 40, "do_center_crop": True, "crop_size": 32, "do_normalize": False}, 0.8, False),
        ({"size": {"shortest_edge": 32}, "image_processor_type": "ConvNextImageProcessor"}, 0.875, False),
        ({"size": 32, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.8}, 0.8, False),
        ({"size": {"shortest_edge": 32}, "crop_pct": 0.8, "do_center_crop": True, "crop_size": 30}, 0.75, False),
    ],
)
def test_preprocessing_and_classes_of_hugging_face(tmp_path, processor, fraction, note):
    theirs, _, _ = noise("hf_vit")
    opened = open_source(write_folder(tmp_path / "a", theirs, HUGGING_FACE, processor))
    seen = opened.preprocessing
    assert seen.crop_fraction == fraction and bool(seen.note) == note == bool(opened.notes)
    assert seen.interpolation == ("bilinear" if note else None)
    assert opened.labels.names[0] == "kind 0" and opened.options["norm_epsilon"] == 1e-12
    if not processor.get("do_normalize", True):
        assert seen.mean == (0, 0, 0) and seen.std == (1, 1, 1)


@pytest.mark.parametrize(
    "processor", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"rescale_factor": 2.0, "do_normalize": False}]
)
def test_pixels_of_hugging_face_that_are_scaled_otherwise(processor):
    processor |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    seen = of_hugging_face({}, processor)
    pixels, plain = np.array([[0.0, 100.0, 255.0]]), ([0.0] * 3, [1.0] * 3)
    factor = processor.get("rescale_factor", 1.0)
    mean, std = plain if "do_normalize" in processor else (processor["image_mean"], processor["image_std"])
    expected = (pixels * factor - np.array(mean)) / np.array(std)
    np.testing.assert_allclose((pixels / 255 - np.array(seen.mean)) / np.array(seen.std), expected, rtol=1e-12)
    assert "keep their size" in of_hugging_face({}, {"do_resize": False}).note


def test_a_thousand_classes_without_names_are_imagenets(tmp_path):
    theirs, _, _ = noise("timm_vit", classes=1000)
    safetensors.numpy.save_file(theirs, tmp_path / "a.safetensors")
    opened = open_source(tmp_path / "a.safetensors")
    assert opened.labels.ids == class_lists.load_class_ids("all") and "ImageNet-1k" in opened.labels.note
    assert opened.labels.names[0] == "tench, Tinca tinca"
    labels = {str(number): name for number, name in enumerate(opened.labels.names)}
    theirs, _, _ = noise("hf_vit", classes=1000)
    named = open_source(write_folder(tmp_path / "b", theirs, HUGGING_FACE | {"id2label": labels}))
    assert named.labels.ids == opened.labels.ids and named.labels.note == ""


def test_crops_that_show_the_whole_image_are_said(tmp_path):
    """As ConvNeXt's: timm's crop_mode, and Hugging Face's processor from 384 pixels on."""
    assert of_timm({"pretrained_cfg": {"crop_mode": "center", "crop_pct": 1.0}}).note == ""
    for mode, words in (("squash", "squeezed into a square"), ("border", "get borders")):
        seen = of_timm({"pretrained_cfg": {"crop_mode": mode, "crop_pct": 0.95}})
        assert seen.crop_fraction == 0.95 and words in seen.note and "here the central square is seen" in seen.note
    large = of_hugging_face({}, {"size": {"shortest_edge": 384}, "image_processor_type": "ConvNextImageProcessor"})
    assert large.crop_fraction == 1.0 and "squeezed into a square" in large.note
    theirs, _, _ = noise()
    config = TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_mode": "squash"}}
    opened = open_source(write_folder(tmp_path / "a", theirs, config))
    assert opened.notes == (of_timm(config).note,), "nothing is said of it"


@pytest.mark.parametrize(
    "read, words",
    [
        (lambda: of_timm({"crop_pct": 1.1}), "crop_pct=1.1, which is no share of an image; write one from 0.01 to 1"),
        (lambda: of_timm({"crop_mode": "ring\x1b"}), "crop_mode='ring\\x1b'; timm has center, squash, border"),
        (lambda: of_hugging_face({}, {"do_flip_channel_order": True}), "channels are blue, green, red there"),
        (lambda: of_hugging_face({}, {"rescale_offset": True}), "1 is taken off pixels there"),
        (lambda: of_hugging_face({}, {"size": {"shortest_edge": 10**400}}), "size=1000"),
        (
            lambda: of_hugging_face({}, {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 40}),
            "crops 40 pixels of 32, which adds borders there; write a crop_size of at most 32",
        ),
    ],
)
def test_crops_and_pixels_that_cannot_be_had_are_refused(read, words):
    with pytest.raises(CheckpointError) as caught:
        read()
    assert words in str(caught.value) and "\n" not in str(caught.value)
