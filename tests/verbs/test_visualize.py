"""`stce visualize`: every pixel that is drawn, and what becomes of the files."""

import io
import shutil

import jax
import numpy as np
import pytest
from helpers import run_cli
from matplotlib import colormaps
from PIL import Image

import stce_jax
from stce_jax.analysis.drawing import introspection, pictures
from stce_jax.data.crops import center_crop
from stce_jax.errors import CheckpointError, ConfigError, DataError
from stce_jax.models.factory import create_model
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.verbs import visualize

TILE, LINE = 160, 18  # pixels: side of a tile, height of its caption
SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16}


def tile_of(picture, row, column):
    """The pixels of a tile of a sheet."""
    left, top = 4 + column * (TILE + 4), 4 + row * (TILE + LINE)
    return np.asarray(picture)[top : top + TILE, left : left + TILE]


def smooth_image(seed, height=60, width=48):
    """An image of a few blurred colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder: one.png, two.jpg, and another one.png deeper in it."""
    root = tmp_path_factory.mktemp("photos")
    (root / "more").mkdir()
    smooth_image(0).save(root / "one.png")
    smooth_image(1).save(root / "two.jpg")
    smooth_image(2).save(root / "more" / "one.png")
    return root


def subject_of(model, size, seed=0):
    variables = jax.jit(lambda key: model.init(key, np.zeros((1, size, size, 3)), train=False))(jax.random.key(seed))
    return visualize.Subject(model, variables, size, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def stce_subject():
    stem = {"stem_widths": (6, 8), "stem_strides": (2, 1), "iterations": 2}
    return subject_of(create_model("vit_ti_stce", num_classes=0, image_size=16, **SMALL, **stem), 16)


@pytest.fixture(scope="module")
def patch_subject():
    return subject_of(create_model("vit_ti_patch", num_classes=0, image_size=16, **SMALL, patch_size=4), 16)


def test_boundaries_are_between_differing_labels():
    labels = np.random.default_rng(0).integers(0, 2, (7, 9))
    before, behind = pictures.boundaries(labels)
    for y, x in np.ndindex(labels.shape):
        for found, step in ((before, 1), (behind, -1)):
            places = [(y + step, x), (y, x + step)]
            beside = [labels[place] for place in places if 0 <= place[0] < 7 and 0 <= place[1] < 9]
            assert found[y, x] == any(label != labels[y, x] for label in beside), f"pixel {y},{x}, step {step}"


def test_lines_are_drawn_on_both_sides_of_boundaries_and_nowhere_else():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.array([[5, 5, 5, 7, 7, 7]] * 4)
    drawn = pictures.draw_boundaries(image, labels)
    np.testing.assert_array_equal(drawn[:, 2], np.full((4, 3), pictures.LIGHT), "before the boundary it is not light")
    np.testing.assert_array_equal(drawn[:, 3], np.full((4, 3), pictures.DARK), "behind the boundary it is not dark")
    assert (drawn[:, [0, 1, 4, 5]] == 100).all(), "a line is drawn where there is no boundary"
    assert (image == 100).all(), "the image itself was drawn on"
    np.testing.assert_array_equal(pictures.draw_boundaries(image, 0 * labels), image)


def test_mean_colours_are_exact():
    random = np.random.default_rng(1)
    image = random.integers(0, 256, (8, 9, 3), np.uint8)
    labels = random.choice([0, 3, 4, 11], (8, 9))
    drawn = pictures.mean_colours(image, labels)
    for label in (0, 3, 4, 11):
        pixels = image[labels == label].tolist()
        expected = [round(sum(channel) / len(pixels)) for channel in zip(*pixels, strict=True)]
        assert (drawn[labels == label] == expected).all(), f"region {label} is not {expected}"


def test_heat_is_matplotlibs_colour_over_the_grey_image():
    image = np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)
    drawn = pictures.draw_heat(image, np.array([[0.25, 1.0]]))
    grey = np.asarray(Image.fromarray(image).convert("L"), float)[:, :, None]
    colours = np.array([[colormaps["inferno"](0.25)[:3], colormaps["inferno"](1.0)[:3]]])
    np.testing.assert_allclose(drawn, 0.4 * grey + 0.6 * 255 * colours, atol=0.51)


@pytest.mark.slow
def test_the_sheet_of_super_tokens_pixel_by_pixel(stce_subject, photos, tmp_path):
    (path,) = visualize.visualize(photos / "one.png", stce_subject, tmp_path / "new" / "folder", tile=TILE)
    assert path == str(tmp_path / "new" / "folder" / "one_super_tokens.png")
    with Image.open(path) as sheet:
        assert (sheet.format, sheet.mode, sheet.size) == ("PNG", "RGB", (4 * (TILE + 4) + 4, 2 * (TILE + LINE) + 4))
        sheet.load()
    photo = np.asarray(Image.open(photos / "one.png"))
    image, seen = center_crop(photo, TILE, 1.0), center_crop(photo, 16, 1.0)
    np.testing.assert_array_equal(tile_of(sheet, 0, 0), image, "the image is not the model's view at full resolution")
    np.testing.assert_array_equal(tile_of(sheet, 1, 0), seen.repeat(10, axis=0).repeat(10, axis=1))
    pixels = (seen[None] / 255 - 0.5).astype(np.float32) / 0.25
    affinities = introspection.iterated_affinities(stce_subject.model, stce_subject.variables, pixels)
    features = np.abs((np.arange(TILE) / 10 - 0.45)[:, None] - 2 * np.arange(8)).argmin(axis=1)  # stride 2, see there
    labels = [introspection.grid_labels(8, 8, 2), *(introspection.super_token_labels(a[0], 2) for a in affinities)]
    assert len(labels) == 3 and (labels[1] != labels[0]).any(), "nothing moves, so nothing is tested"
    for column, small in enumerate(labels, 1):
        large = small[features[:, None], features]
        lines, colours = tile_of(sheet, 0, column), tile_of(sheet, 1, column)
        for label in np.unique(large):
            region = large == label
            expected = np.round(image[region].mean(axis=0))
            assert (colours[region] == expected).all(), f"column {column}: super token {label} is not {expected}"
        np.testing.assert_array_equal(lines, pictures.draw_boundaries(image, large), f"column {column}")


@pytest.mark.slow
def test_a_token_is_drawn_as_its_affinity(stce_subject, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")  # on black there is nothing but the heat
    path, other = visualize.visualize(
        [tmp_path / "black.png"], stce_subject, tmp_path, token=(1, 3), attention=True, tile=TILE
    )[::-1]
    assert path.endswith("black_token_1_3.png") and other.endswith("black_attention.png"), (path, other)
    affinities = introspection.iterated_affinities(
        stce_subject.model, stce_subject.variables, np.full((1, 16, 16, 3), -2, np.float32)
    )
    maps = [introspection.token_affinity(affinity[0], 2, 1, 3) for affinity in affinities]
    greatest = max(heat.max() for heat in maps)
    for column, heat in enumerate(maps, 1):
        tile = tile_of(Image.open(path), 0, column)
        for y, x in np.ndindex(8, 8):
            expected = np.round(0.6 * 255 * np.array(colormaps["inferno"](heat[y, x] / greatest)[:3]))
            np.testing.assert_array_equal(tile[20 * y + 5, 20 * x + 5], expected, f"iteration {column}, {y},{x}")
    cell = tile_of(Image.open(path), 0, 0).any(axis=2)
    rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
    # Features 2 and 3 lie at the image's pixels 4 and 6, features 6 and 7 at 12 and 14: the last reach to its end.
    assert (rows[0], rows[-1], columns[0]) == (34, 75, 114), f"the cell is drawn at {rows}, {columns}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stce_subject", "patch_subject"])
def test_attention_is_drawn_as_it_is_sown(name, request, tmp_path):
    subject = request.getfixturevalue(name)
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    (path,) = visualize.visualize([tmp_path / "black.png"], subject, tmp_path, attention=True, tile=TILE)
    images = np.full((1, 16, 16, 3), -2, np.float32)
    _, sown = subject.model.apply(subject.variables, images, train=False, mutable="intermediates")
    sheet = Image.open(path)
    assert not tile_of(sheet, 0, 0).any(), "the first tile is not the image"
    weights = [sown["intermediates"][f"blocks_{block}"]["attention"]["attention"][0] for block in range(2)]
    maps = [np.asarray(each)[0].mean(axis=0)[0, 1:].reshape(4, 4) for each in weights]  # of [1, A, 17, 17]
    greatest = max(each.max() for each in maps)
    for block, row in enumerate(maps):
        tile = tile_of(sheet, 0, 1 + block)
        for y, x in np.ndindex(4, 4):
            expected = 0.6 * 255 * np.array(colormaps["inferno"](row[y, x] / greatest)[:3])
            near = np.abs(tile[40 * y + 15, 40 * x + 15] - expected).max()
            assert near <= 2, f"block {block + 1}, token {y},{x}: off by {near}"  # rounding may take the next colour


def test_blocks_lie_in_rows():
    embedding = create_model("vit_ti_patch", num_classes=0, image_size=32).embedding
    image, attention = np.zeros((TILE, TILE, 3), np.uint8), np.full((12, 2, 2), 0.1)
    picture = visualize.sheets.attention_sheet(image, attention, embedding, 32)
    size = (7 * (TILE + 4) + 4, 2 * (TILE + LINE) + 4 + LINE)
    assert picture.size == size, "12 blocks and the image are not in two rows with a bar below them"
    bar = np.asarray(picture)[-LINE // 2].astype(int)
    assert (bar[60:300] != 255).any(axis=1).all() and bar[60].sum() < bar[300].sum(), "there is no bar of the scale"


def test_a_footer_is_broken_into_lines_and_makes_room_for_them():
    tiles = [[(np.zeros((TILE, TILE, 3), np.uint8), "caption")]]
    words = ["some words that do not fit in one line of so small a picture", "more"]
    picture = pictures.sheet(tiles, footer=words)
    lines, rest = divmod(picture.height - pictures.sheet(tiles).height, LINE)
    assert rest == 0 and lines >= 3 and picture.width == TILE + 8


def test_fewer_keys_than_tokens_are_drawn_where_they_lie():
    embedding = create_model("cvt_13", num_classes=0, image_size=32).embedding  # 8x8 tokens, token i at pixel 4 i + 1
    image, attention = np.zeros((TILE, TILE, 3), np.uint8), np.array([[[0.0, 0.5], [0.0, 0.5]]])
    picture = visualize.sheets.attention_sheet(image, attention, embedding, 32, apart=4)  # keys at tokens 0 and 4
    bright = tile_of(picture, 0, 1)[TILE // 2].max(axis=1) > 100
    first = TILE * 7 // 32  # from pixel 7 on token 2 is the nearest, and key 1 its nearest
    assert not bright[: first - 2].any() and bright[first + 2 :].all()


def test_captions_fit_below_the_smallest_tile():
    from PIL import ImageFont

    font = ImageFont.load_default(size=pictures.SMALLEST_TEXT)
    for caption in ("the model's 224 x 224 pixels", "iteration 3: up to 0.74", "block 11: up to 10.5%"):
        assert font.getlength(caption) < visualize.SMALLEST_TILE, caption


@pytest.fixture
def tiny(tiny_run, tmp_path):
    """A copy of the tiny run, to be drawn into."""
    return shutil.copytree(tiny_run[0], tmp_path / "tiny")


@pytest.mark.slow
def test_a_run_from_the_command_line(capsys, tiny, photos):
    """Names, a folder, equal names, a file given twice; the model sees what the run's preprocessing makes of them."""
    words = (photos / "one.png", photos, f"--workdir={tiny}", f"--tile={TILE}")
    code, out, error = run_cli(capsys, "visualize", *words)
    assert (code, error) == (0, "")
    names = [f"{name}_super_tokens.png" for name in ("one", "one-2", "two")]
    assert out.splitlines() == [f"{tiny}/visualize/{name}" for name in names]
    drawn = {path.name: path.read_bytes() for path in (tiny / "visualize").iterdir()}
    assert sorted(drawn) == sorted(names), "there is something else in the folder"
    run = stce_jax.load_run(tiny)
    for name, file in (("one", "one.png"), ("one-2", "more/one.png")):
        seen = tile_of(Image.open(io.BytesIO(drawn[f"{name}_super_tokens.png"])), 1, 0)[5::10, 5::10]  # 16 pixels
        expected = run.preprocess(photos / file)
        np.testing.assert_allclose((seen / 255 - run.mean) / run.std, expected, atol=1e-5, err_msg=file)

    code, out, error = run_cli(capsys, "visualize", *words, f"--output={tiny}/again")
    assert (code, error) == (0, "")
    again = {path.name: path.read_bytes() for path in (tiny / "again").iterdir()}
    assert again == drawn, "the same command has drawn other pictures"

    options = ("--attention", "--token=1,0", "--ema", "--checkpoint=best", "--image_size=24")
    code, out, error = run_cli(capsys, "visualize", photos / "two.jpg", f"--workdir={tiny}", *options)
    assert (code, error) == (0, "")
    assert out.splitlines() == [f"{tiny}/visualize/two_{kind}.png" for kind in ("attention", "token_1_0")]


def test_what_cannot_be_read_is_named_and_the_others_are_drawn(capsys, tiny, photos, tmp_path):
    bad, cut = tmp_path / "bad.png", tmp_path / "cut.png"
    bad.write_text("no image")
    cut.write_bytes((photos / "one.png").read_bytes()[:100])
    words = (bad, photos / "one.png", cut, photos / "two.jpg", f"--workdir={tiny}", f"--tile={TILE}")
    code, out, error = run_cli(capsys, "visualize", *words)
    assert code == 3
    assert len(error.splitlines()) == 3 and all(line.startswith("stce: ") for line in error.splitlines()), error
    assert f"cannot decode {bad}" in error and f"cannot decode {cut}" in error and "2 of 4 images" in error
    assert [line.rpartition("/")[2] for line in out.splitlines()] == ["one_super_tokens.png", "two_super_tokens.png"]
    assert len(list((tiny / "visualize").iterdir())) == 2, "something half-written is left"


def test_without_a_function_for_them_unreadable_images_are_raised(stce_subject, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(DataError, match="cannot decode"):
        visualize.visualize([tmp_path / "bad.png"], stce_subject, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()


def test_names_that_differ_in_case_alone_are_two_files(stce_subject, photos, tmp_path):
    for name in ("a.png", "A.jpg", "a.jpg", "A-2.png"):
        shutil.copy(photos / "one.png", tmp_path / name)
    found = visualize.visualize(tmp_path, stce_subject, tmp_path / "drawn", tile=TILE)
    names = [path.rpartition("/")[2].removesuffix("_super_tokens.png") for path in found]
    assert len({name.casefold() for name in names}) == len(names) == 4, names


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, code, named",
    [
        ((), 2, "required: PATH"),
        (("one.png",), 2, "either --workdir=RUN or --model=NAME"),
        (("one.png", "--workdir=W", "--model=vit_s_stce"), 2, "either --workdir=RUN or --model=NAME"),
        (("one.png", "--model=vit_s_stce", "--ema"), 2, "--checkpoint and --ema are of a --workdir"),
        (("one.png", "--workdir=W", "--seed=1"), 2, "--seed is of a --model"),
        (("one.png", "--workdir=W"), 2, "W is no workdir of a run"),
        (("one.png", "--model=vit_q_stce"), 2, "there is no model 'vit_q_stce'"),
        (("one.png", "--model=vit_s_patch", "--image_size=100"), 2, "96 or 112 would work"),
        (("one.png", "--model=vit_s_stce", "--token=3"), 2, "'3' is no ROW,COLUMN"),
        (("none.png", "--model=vit_s_stce"), 3, "there is no none.png"),
        (("empty", "--model=vit_s_stce"), 3, "folder empty holds no image"),
        (("one.png", "--workdir=RUN", "--checkpoint=17"), 4, "there is no checkpoint '17'"),
        (("one.png", "--workdir=RUN", "--token=1,2"), 2, "there is no token 1,2; the last of the grid is 1,1"),
        (("one.png", "--workdir=RUN", "--reduced"), 2, "no block of the model reduces its tokens"),
        (("one.png", "--workdir=RUN", "--tile=20"), 2, "tile is 20; it must be a whole number between"),
        (("one.png", "--workdir=RUN", "--image_size=0"), 2, "image_size is 0"),
        (("one.png", "--workdir=RUN", "--output=one.png/x"), 2, "cannot write one.png/x/one_super_tokens.png"),
        (("one.png", "--workdir=RUN", "--output=/proc/x"), 2, "cannot write /proc/x/one_super_tokens.png"),
    ],
)
def test_refusals(capsys, monkeypatch, tmp_path, photos, tiny_run, words, code, named):
    monkeypatch.chdir(tmp_path)
    shutil.copy(photos / "one.png", tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tiny_run[0].iterdir())
    found, out, error = run_cli(capsys, "visualize", *(word.replace("RUN", str(tiny_run[0])) for word in words))
    assert found == code and named in error, error
    assert error.startswith("stce: ") and error.count("\n") == 1, f"not one line: {error!r}"
    assert out == "" and sorted(path.name for path in tmp_path.iterdir()) == ["empty", "one.png"]
    assert sorted(tiny_run[0].iterdir()) == before, "something was written"


@pytest.mark.slow
def test_a_reduction_is_drawn_by_default_and_alone_where_it_is_asked_for(stce_subject, photos, tmp_path):
    def names(**options):
        drawn = visualize.visualize(photos / "one.png", subject, tmp_path, tile=TILE, **options)
        return [path.rpartition("/")[2] for path in drawn]

    model = stce_subject.model.clone(reduction=REDUCTIONS["topk"]((0, 1), keep_rate=0.7))
    subject = stce_subject._replace(model=model, size=32)  # larger than the model's images
    assert names() == ["one_super_tokens.png", "one_reduction.png"]
    assert names(reduced=True) == ["one_reduction.png"]
    assert names(reduced=True, attention=True) == ["one_attention.png", "one_reduction.png"]
    sheet = Image.open(tmp_path / "one_reduction.png")
    assert sheet.size == (3 * (TILE + 4) + 4, 2 * (TILE + LINE) + 4)
    image = center_crop(np.asarray(Image.open(photos / "one.png")), TILE, 1.0)
    kept = [(tile_of(sheet, 0, column) == image).all(axis=-1).mean() for column in range(3)]
    assert kept[0] == 1 and kept[1] > kept[2] > 0.3, kept
    with pytest.raises(ConfigError, match="no block of the model reduces its tokens"):
        visualize.visualize(photos / "one.png", stce_subject, tmp_path, reduced=True)
    broken = subject._replace(variables=jax.tree.map(lambda leaf: leaf * np.nan, subject.variables))
    with pytest.raises(CheckpointError, match="no finite numbers"):
        visualize.visualize(photos / "one.png", broken, tmp_path, reduced=True)


@pytest.mark.slow
def test_a_named_model_with_random_weights(capsys, monkeypatch, photos, tmp_path):
    """Without super tokens it is refused; its attention is drawn."""

    def small(name, **options):
        assert name == "vit_ti_patch"
        return create_model(name, **SMALL, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(visualize, "create_model", small)
    words = ("visualize", photos / "one.png", "--model=vit_ti_patch", "--image_size=32", f"--tile={TILE}")
    code, out, error = run_cli(capsys, *words)
    assert code == 2 and "no super tokens; use --attention" in error and error.count("\n") == 1, error
    assert out == "" and not list(tmp_path.iterdir())
    code, out, error = run_cli(capsys, *words, "--attention")
    assert (code, out, error) == (0, "visualize/one_attention.png\n", "")
    first = (tmp_path / "visualize" / "one_attention.png").read_bytes()
    run_cli(capsys, *words, "--attention", "--seed=1")
    assert (tmp_path / "visualize" / "one_attention.png").read_bytes() != first, "another seed has the same weights"
    run_cli(capsys, *words, "--attention", "--seed=0")
    assert (tmp_path / "visualize" / "one_attention.png").read_bytes() == first, "the same seed has other weights"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, wanted, named",
    [
        ({"iterations": 0}, {"token": (0, 0)}, "iterations=0"),
        ({"pooling": "mean"}, {"attention": True}, "no class token"),
    ],
)
def test_what_a_model_does_not_have_is_refused(photos, tmp_path, options, wanted, named):
    model = create_model("vit_ti_stce", num_classes=0, image_size=16, **options)
    subject = visualize.Subject(model, {}, 16, 1.0, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match=named):
        visualize.visualize([photos / "one.png"], subject, tmp_path / "drawn", **wanted)
    assert not (tmp_path / "drawn").exists()


@pytest.mark.slow
def test_average_pooling_has_cells_alone(photos, tmp_path):
    stem = {"stem_widths": (8,), "stem_strides": (2,)}
    model = create_model("vit_ti_stce", num_classes=0, image_size=16, iterations=0, **SMALL, **stem)
    (path,) = visualize.visualize(photos / "one.png", subject_of(model, 16), tmp_path, tile=TILE)
    assert Image.open(path).width == 2 * (TILE + 4) + 4, "there is something else than the image and its cells"


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_refused(stce_subject, photos, tmp_path):
    broken = stce_subject._replace(variables=jax.tree.map(lambda leaf: leaf * np.nan, stce_subject.variables))
    for wanted in ({}, {"attention": True}):
        with pytest.raises(CheckpointError, match="no finite numbers"):
            visualize.visualize(photos / "one.png", broken, tmp_path / "drawn", **wanted)
    assert not (tmp_path / "drawn").exists()
