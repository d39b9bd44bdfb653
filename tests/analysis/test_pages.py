"""Pages for a browser: what they hold is what was computed, and nothing of anybody's text is code in them."""

import base64
import io
import json

import numpy as np
import pytest
from page_checks import check_page
from PIL import Image

from stce_jax.analysis.drawing import introspection, reductions
from stce_jax.analysis.intervals import mean_interval
from stce_jax.analysis.pages import looking, running, shell
from stce_jax.models.embeddings import SuperTokenConvEmbed

HOSTILE = '</script><img src=x onerror="alert(1)">\u2028\u202e\x1b[2J\udcff&amp;'


def unpacked(text, kind, *shape):
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)


def test_text_of_strangers_is_no_code():
    data = {"name": HOSTILE}
    body = f"<p>{shell.text(HOSTILE)}</p>"
    page = check_page(shell.page(HOSTILE, body, style="running.css", script="running.js", data=data))
    assert page.data == data, "data do not come back as they were"
    shown = [text for text in page.texts if "alert" in text]
    assert len(shown) == 2 and all(text == shell.name(HOSTILE) and text.isprintable() for text in shown), shown
    assert len(shell.name("a" * 10_000)) == shell.NAME


def embedding_of(**options):
    return SuperTokenConvEmbed(width=8, stem_widths=(4, 8), stem_strides=(2, 1), cell=2, **options)


def test_a_pages_arrays_are_those_that_were_computed():
    rng = np.random.default_rng(0)
    affinities = [rng.dirichlet(np.ones(9), (8, 8)).astype(np.float32) for _ in range(2)]
    attention = [rng.dirichlet(np.ones(17), 3)[:, 1:].reshape(3, 4, 4) for _ in range(2)]
    stages = [np.concatenate([rng.permutation(10), rng.integers(-1, 10, 6)]), rng.integers(-1, 5, 10)]
    image = rng.integers(0, 256, (160, 160, 3), np.uint8)
    found = looking.of_image("a.png", image, looking.Looked(affinities, attention, stages), embedding_of(), 16)
    picture = Image.open(io.BytesIO(base64.b64decode(found["picture"].partition("base64,")[2])))
    assert (picture.format, picture.size) == ("JPEG", (160, 160))
    labels = [unpacked(each, "<i4", 8, 8) for each in found["super_tokens"]["labels"]]
    np.testing.assert_array_equal(labels[0], introspection.grid_labels(8, 8, 2))
    greatest = found["super_tokens"]["greatest"]
    assert greatest == np.max(affinities)
    for label, affinity, packed in zip(labels[1:], affinities, found["super_tokens"]["affinities"], strict=True):
        np.testing.assert_array_equal(label, introspection.super_token_labels(affinity, 2))
        found_again = unpacked(packed, np.uint8, 8, 8, 9) / 255 * greatest
        np.testing.assert_allclose(found_again, affinity, atol=0.5 / 255 * greatest + 1e-6)
    for heads, block in zip(attention, found["attention"], strict=True):
        maps = unpacked(block["maps"], np.uint8, 4, 4, 4) / 255 * block["greatest"]
        np.testing.assert_allclose(maps[0], heads.mean(axis=0), atol=0.5 / 255 * block["greatest"] + 1e-9)
        np.testing.assert_allclose(maps[1:], heads, atol=0.5 / 255 * block["greatest"] + 1e-9)
        assert block["greatest"] == heads.max() and block["greatest_mean"] == heads.mean(axis=0).max()
    for places, stage in zip(reductions.compose(stages), found["reduction"], strict=True):
        np.testing.assert_array_equal(unpacked(stage["places"], "<i4", 16), places)
        assert stage["counts"] == {
            "tokens": len(set(places[places >= 0].tolist())),
            "dropped": int((places < 0).sum()),
            "merged": sum(place >= 0 and (places == place).sum() > 1 for place in places),
        }
    json.dumps(found, allow_nan=False)
    only = looking.of_image("a.png", image, looking.Looked(affinities=[]), embedding_of(iterations=0), 16)
    assert set(only) == {"name", "picture", "super_tokens"} and len(only["super_tokens"]["labels"]) == 1


def test_attention_that_is_nowhere_is_no_division_by_zero():
    block = looking._attention(np.zeros((2, 3, 3)))
    assert not unpacked(block["maps"], np.uint8, 3, 3, 3).any()


# --- runs


def lines_of(values, *, train=()):
    entry = {"top5": 1.0, "images_per_second": 100.0}
    found = [
        {"split": "train", "epoch": float(e), "step": e, "loss": v, "top1": v / 4} | entry
        for e, v in enumerate(train, 1)
    ]
    return found + [
        {"split": "eval", "epoch": float(e), "step": e, "loss": v, "top1": v / 4} for e, v in enumerate(values, 1)
    ]


def row(name, **values):
    keys = ("score", "best_score", "loss", "images_per_second")
    return (
        {"run": name, "seed": 0, "state": "in progress", "epoch": 1.0, "epochs": 2.0, "last": ""}
        | dict.fromkeys(keys)
        | values
    )


def group(label, *runs, **values):
    return running.Group(label, [row(f"{label}{k}", **values) for k in range(len(runs))], runs)


def write(groups, every=None):
    return running.write(groups, written="now", moment=0.0, every=every)


def test_seeds_have_their_mean_with_its_interval_and_each_run_its_line():
    values = [1.0, 2.0, 1.5], [2.0, 2.5, 1.0], [1.2, 2.2, 1.7]
    content = write([group("three", *map(lines_of, values)), group("alone", lines_of([3.0, 3.0], train=[2.0]))])
    page = check_page(content)
    classes = [found.get("class", "") for _, found in page.tags]
    assert classes.count("g0 one") == 6 and classes.count("g0 band") == 2, "a line a run and a band in each panel"
    assert classes.count("g0 mean") == classes.count("g1 mean") == 2 and "g1 band" not in classes
    assert classes.count("g1 train") == 2 and "g0 train" not in classes, "training is drawn where there is none"
    mean, low, high = mean_interval([each[1] for each in values])
    assert f"epoch 2: {mean:.4g} [{low:.4g}, {high:.4g}]" in page.texts and "epoch 2: 3" in page.texts
    assert any("(3 seeds)" in text for text in page.texts)


def test_the_interval_of_finished_seeds_is_said_and_of_others_not():
    runs = lines_of([1.0]), lines_of([1.2])
    done = write([group("a", *runs, state="finished", score=0.5)])
    assert "mean of 2 seeds: top-1 50.00%, 95% interval 50.00 to 50.00" in done
    assert "mean of" not in write([group("a", *runs, state="in progress", score=0.5)])


@pytest.mark.parametrize(
    "values", [[], [None], [0.0], [1e308, -1e308], [1e-30, 1e-30], [float(k) for k in range(5000)]]
)
def test_whatever_is_logged_gives_a_page_of_bounded_size(values):
    content = write(
        [group("a", lines_of(values) if None not in values else [lines_of([1.0])[0] | {"loss": None, "top1": None}])]
    )
    check_page(content)
    assert "nan" not in content and "inf" not in content.replace("info", "") and len(content) < 100_000
    assert ("nothing yet" in content) == (values in ([], [None]))


@pytest.mark.parametrize("epoch", [1e-300, 1e300])
def test_epochs_of_a_damaged_file_are_drawn_somewhere(epoch):
    check_page(write([group("a", [line | {"epoch": epoch} for line in lines_of([1.0])])]))


def test_names_of_runs_are_no_code_and_groups_can_be_told_apart():
    groups = [group(f"{HOSTILE}{k}", lines_of([1.0, 2.0])) for k in range(15)]
    page = check_page(write(groups, every=30))
    marks = [(found["class"], found["d"]) for tag, found in page.tags if found.get("class", "").endswith(" mark")]
    assert len(set(marks)) == 15, "two groups look alike"
    assert page.data == {"every": 30, "written": 0.0} and any(found.get("id") == "refresh" for _, found in page.tags)
    assert not any(found.get("id") == "refresh" for _, found in check_page(write(groups)).tags)


@pytest.mark.parametrize("low, high", [(0, 1), (-1e-9, 1e-9), (0.3, 0.31), (0, 300), (5e5, 1e7)])
def test_numbers_on_axes_are_few_and_within(low, high):
    ticks = running._ticks(low, high)
    assert 2 <= len(ticks) <= 8 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks), ticks
