"""`stce visualize --html`: one page of bounded size with whatever there is, and the reason where there is nothing."""

import jax
import numpy as np
import pytest
from helpers import initial, run_cli
from page_checks import check_page
from PIL import Image

from stce_jax.analysis.pages import looking
from stce_jax.errors import CheckpointError, ConfigError, DataError
from stce_jax.models.factory import create_model
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.verbs.visualize import Subject
from stce_jax.verbs.visualize_page import visualize_page

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16}
STEM = {"stem_widths": (6, 8), "stem_strides": (2, 1), "iterations": 2}


def subject_of(reduction=None, **options):
    model = create_model("vit_ti_stce", num_classes=0, image_size=16, **SMALL, **STEM | options)
    model = model.clone(reduction=reduction)
    variables = initial(model, np.zeros((1, 16, 16, 3), np.float32), train=False)
    return Subject(model, variables, 16, 1.0, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def subject():
    return subject_of(REDUCTIONS["topk"]((0,), keep_rate=0.7))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("a/one.png", "b/one.png", "two <i>.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / name)
    return root


@pytest.mark.slow
def test_one_page_with_all_there_is(subject, photos, tmp_path):
    page = visualize_page(photos, subject, str(tmp_path / "new"), about="a <b>model</b>", tile=160)
    content = (tmp_path / "new" / "index.html").read_text()
    assert page == (str(tmp_path / "new" / "index.html"), 3, 0, len(content.encode()))
    found = check_page(content)
    names = ["a/one.png", "b/one.png", f"{photos.name}/two <i>.png"]  # enough to tell them apart
    assert [image["name"] for image in found.data["images"]] == names
    assert "a <b>model</b>" in found.texts and found.data["side"] == 160
    for image in found.data["images"]:
        assert image.keys() == {"name", "picture", "super_tokens", "attention", "reduction"}
        assert len(image["attention"]) == 1, "attention among reduced tokens lies in no grid"
    assert found.data["stages"] == ["block 0"]
    assert list(found.data["missing"].values()) == [
        "the attention of the blocks from 1 on: their tokens are reduced and lie in no grid"
    ]


@pytest.mark.slow
def test_a_page_has_no_more_than_its_limit(subject, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "LARGEST", 20_000)  # of images alone; the page around them has about as much
    page = visualize_page(photos, subject, str(tmp_path), tile=160)
    assert page.images + page.left_out == 3 and 1 <= page.images <= 2 and page.size < 50_000
    assert f"{page.left_out} more images are left out" in (tmp_path / "index.html").read_text()
    monkeypatch.setattr(looking, "LARGEST", 100)
    with pytest.raises(ConfigError, match="one image makes a page of more than"):
        visualize_page(photos, subject, str(tmp_path / "none"), tile=160)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_what_cannot_be_shown_is_refused(subject, photos, tmp_path):
    with pytest.raises(ConfigError, match="tile of a page is 1025; it must be a whole number between 160 and 1024"):
        visualize_page(photos, subject, str(tmp_path / "out"), tile=1025)
    (tmp_path / "bad.png").write_text("no image")
    failures = []
    with pytest.raises(DataError, match="no image could be read"):
        visualize_page([tmp_path / "bad.png"], subject, str(tmp_path / "out"), unreadable=failures.append)
    assert len(failures) == 1
    broken = subject._replace(variables=jax.tree.map(lambda leaf: leaf * np.nan, subject.variables))
    with pytest.raises(CheckpointError, match="no finite numbers"):
        visualize_page(photos, broken, str(tmp_path / "out"))
    model = create_model("vit_ti_patch", num_classes=0, image_size=16, **SMALL, patch_size=4, pooling="mean")
    with pytest.raises(ConfigError, match=r"nothing of this model to show: .*no super tokens; .*no class token"):
        visualize_page(photos, Subject(model, {}, 16, 1.0, (0.5,) * 3, (0.25,) * 3), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(capsys, tiny_run, photos, tmp_path):
    words = (f"--workdir={tiny_run[0]}", "--html", "--tile=160", f"--output={tmp_path / 'out'}")
    code, out, error = run_cli(capsys, "visualize", photos, *words)
    assert (code, error) == (0, "") and out == f"{tmp_path}/out/index.html: 3 images, 0.1 MB\n"
    found = check_page((tmp_path / "out" / "index.html").read_text())
    assert "tiny, checkpoint last" in found.texts and not any(str(tiny_run[0]) in text for text in found.texts)
    code, out, error = run_cli(capsys, "visualize", photos, *words, "--attention")
    assert code == 2 and "give it without --attention" in error and error.count("\n") == 1
    (tmp_path / "bad.png").write_text("no image")
    code, out, error = run_cli(capsys, "visualize", photos, tmp_path / "bad.png", *words)
    assert code == 3 and "3 images" in out and "1 of 4 images could not be read" in error
