"""The preview sheet: what is on it is what training draws, and a wrong file is refused."""

import os

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import CLASSES, make_images

from vggjax.data.augment.settings import PRESETS, Augmentation
from vggjax.errors import ConfigError, DataError
from vggjax.report.augment_preview import DRAWS, draw_views, write_preview


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("preview") / "photos", each=4)


def cells(path, rows):
    """Cuts the sheet into the images on it: (rows, 1 + DRAWS, 100, 100, 3), edges left out."""
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    inked = (sheet != 255).any(-1)
    right = np.flatnonzero(inked[200])[-1] + 1  # the sheet's last image ends here
    side, gap = 168, 6
    lefts = [right - side - i * (side + gap) for i in range(DRAWS)][::-1]
    lefts = [lefts[0] - side - 3 * gap, *lefts]
    bottoms = [sheet.shape[0] - 28 - i * (side + 14) for i in range(rows)][::-1]
    return np.array([[sheet[b - 134 : b - 34, x + 34 : x + 134] for x in lefts] for b in bottoms])


def test_a_sheet_has_the_original_and_eight_draws_of_each_row(photos, tmp_path):
    out = write_preview(
        str(photos), tmp_path / "a.png", augmentation=PRESETS["flip"], image_size=64, rows=3
    )
    found = cells(out, 3)
    for original, *draws in found:
        same = [np.array_equal(draw, original) for draw in draws]
        mirrored = [np.abs(draw - original[:, ::-1]).mean() < 4 for draw in draws]
        assert all(a or b for a, b in zip(same, mirrored, strict=True))
        assert 0 < sum(same) < DRAWS
    # make_images lays another color over each class: three rows show three classes.
    assert {int(row[0].mean((0, 1)).argmax()) for row in found} == {0, 1, 2}
    assert os.listdir(tmp_path) == ["a.png"]


def test_the_seed_decides_and_nothing_else(photos, tmp_path):
    def sheet(name, seed):
        turned = Augmentation(rotation_range=90, fill_mode="wrap")
        write_preview(
            str(photos), tmp_path / name, augmentation=turned, image_size=32, rows=2, seed=seed
        )
        return (tmp_path / name).read_bytes()

    assert sheet("a.png", 1) == sheet("b.png", 1)
    assert sheet("a.png", 1) != sheet("c.png", 2)


def test_mixed_draws_know_their_labels():
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 100, 200)])
    views = draw_views(images, np.array([7, 8, 9], np.int32), Augmentation(mixup=1.0))
    assert len(views) == DRAWS
    for view in views:
        assert view["other"].tolist() == [8, 9, 7]
        expected = view["share"] * [0, 100, 200] + (1 - view["share"]) * [100, 200, 0]
        np.testing.assert_allclose(view["images"][:, 0, 0, 0], expected, atol=0.51)


def test_a_mixed_sheet_is_written_in_any_of_its_formats(photos, tmp_path):
    mixed = Augmentation(mixup=0.2, cutmix=1.0)
    for name in ("a.jpg", "b.WEBP"):
        write_preview(str(photos), tmp_path / name, augmentation=mixed, image_size=32, rows=50)
        with Image.open(tmp_path / name) as sheet:
            assert sheet.height > 4 * len(CLASSES) * 168  # no more rows than images


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (".", {}, "is a folder; give a file in it"),
        ("sheet.pdf", {}, "must end in .png, .jpg, .jpeg, .webp; got 'sheet.pdf'"),
        ("sheet", {}, "must end in"),
        ("no/such/sheet.png", {}, "There is no folder"),
        ("a.png", {"rows": 0}, "--rows must be from 1 to 50; got 0"),
        ("a.png", {"seed": -1}, "--seed must be"),
        ("a.png", {"image_size": 0}, "--image-size must be from 32"),
    ],
)
def test_what_makes_no_sheet_is_refused_before_a_image_is_read(tmp_path, name, options, message):
    with pytest.raises(ConfigError) as caught:
        write_preview("digits", tmp_path / name, augmentation=PRESETS["flip"], **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_data_without_a_readable_image_is_an_error_and_one_bad_image_is_passed_over(tmp_path):
    photos = make_images(tmp_path / "photos", each=2)
    for name in CLASSES:
        (photos / name / "00.png").write_bytes(b"no image")
    out = tmp_path / "sheet.png"
    write_preview(str(photos), out, augmentation=PRESETS["flip"], image_size=32)
    assert len(cells(out, 3)) == 3
    for name in CLASSES:
        (photos / name / "01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="No image of photos can be read"):
        write_preview(str(photos), out, augmentation=PRESETS["flip"], image_size=32)
