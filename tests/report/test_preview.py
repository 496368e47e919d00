"""The augmentation preview shows what training draws, and refuses a file it cannot write."""

import os

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import CLASSES, make_images

from vggjax.data.augment.settings import PRESETS, Augmentation
from vggjax.errors import ConfigError, DataError
from vggjax.report.augment_preview import (
    CELL_PX,
    DRAWS,
    GAP_PX,
    MARGIN_PX,
    ROW_GAP_PX,
    augmented_draws,
    write_preview,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("preview") / "photos", each=4)


def preview(photos, path, preset="flip", **options):
    return write_preview(str(photos), path, augmentation=PRESETS[preset], **options)


def cells(path, rows):
    """Cut a preview into the centers of its images, (rows, 1 + DRAWS, 100, 100, 3)."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    step = CELL_PX + GAP_PX
    last = image.shape[1] - MARGIN_PX - 2 * GAP_PX + GAP_PX - CELL_PX
    lefts = [last - i * step for i in range(DRAWS)][::-1]
    lefts = [lefts[0] - step - 2 * GAP_PX, *lefts]
    bottom = image.shape[0] - MARGIN_PX
    tops = [bottom - CELL_PX - i * (CELL_PX + ROW_GAP_PX) for i in range(rows)][::-1]
    return np.array([[image[y + 34 : y + 134, x + 34 : x + 134] for x in lefts] for y in tops])


def test_each_row_shows_the_original_and_its_draws(photos, tmp_path):
    out = preview(photos, tmp_path / "a.png", image_size=64, rows=3)
    shown = cells(out, 3)
    for original, *draws in shown:
        same = [np.array_equal(draw, original) for draw in draws]
        mirrored = [np.abs(draw - original[:, ::-1]).mean() < 4 for draw in draws]
        assert all(a or b for a, b in zip(same, mirrored, strict=True))
        assert 0 < sum(same) < DRAWS
    # make_images tints each class differently: three rows show three classes.
    assert {int(row[0].mean((0, 1)).argmax()) for row in shown} == {0, 1, 2}
    assert os.listdir(tmp_path) == ["a.png"]


def test_the_seed_alone_decides(photos, tmp_path):
    images = [
        preview(photos, tmp_path / name, image_size=32, rows=2, seed=seed).read_bytes()
        for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2))
    ]
    assert images[0] == images[1] != images[2]


def test_mixed_draws_know_their_labels():
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 100, 200)])
    draws = augmented_draws(images, np.array([7, 8, 9], np.int32), Augmentation(mixup=1.0))
    assert len(draws) == DRAWS
    for draw in draws:
        assert draw["other"].tolist() == [8, 9, 7]
        expected = draw["share"] * [0, 100, 200] + (1 - draw["share"]) * [100, 200, 0]
        np.testing.assert_allclose(draw["images"][:, 0, 0, 0], expected, atol=0.51)


def test_a_mixed_preview_is_written_in_any_format(photos, tmp_path):
    mixed = Augmentation(mixup=0.2, cutmix=1.0)
    for name in ("a.jpg", "b.WEBP"):
        write_preview(str(photos), tmp_path / name, augmentation=mixed, image_size=32, rows=50)
        with Image.open(tmp_path / name) as image:
            assert image.height > 4 * len(CLASSES) * CELL_PX  # no more rows than images


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (".", {}, "is the folder"),
        ("preview.pdf", {}, "must end in .png, .jpg, .jpeg, .webp; got 'preview.pdf'"),
        ("preview", {}, "must end in"),
        ("no/such/preview.png", {}, "must be in an existing folder"),
        ("a.png", {"rows": 0}, "`rows` must be from 1 to 50; got 0"),
        ("a.png", {"seed": -1}, "`seed` must be from 0"),
        ("a.png", {"image_size": 0}, "`image_size` must be from 32 to 1024 px; got 0"),
    ],
)
def test_wrong_arguments_are_refused_before_an_image_is_read(tmp_path, name, options, message):
    with pytest.raises(ConfigError) as caught:
        preview("digits", tmp_path / name, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_preview_never_lands_in_the_dataset(photos, tmp_path):
    inside = photos / CLASSES[0]
    (tmp_path / "link").symlink_to(inside)
    for path in (inside / "preview.png", inside / "00.png", tmp_path / "link" / "preview.png"):
        with pytest.raises(ConfigError, match="is inside the dataset"):
            preview(photos, path, image_size=32)


def test_unreadable_images_are_skipped_and_a_dataset_of_them_is_refused(tmp_path):
    photos = make_images(tmp_path / "photos", each=2)
    for name in CLASSES:
        (photos / name / "00.png").write_bytes(b"no image")
    out = tmp_path / "preview.png"
    assert len(cells(preview(photos, out, image_size=32), 3)) == 3
    for name in CLASSES:
        (photos / name / "01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="No image of photos can be read"):
        preview(photos, out, image_size=32)
