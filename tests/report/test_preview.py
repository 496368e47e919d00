"""The augmentation preview shows what training draws, and refuses a file it cannot write."""

import os

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import CLASSES, make_images

from vggjax.data.augment.settings import PRESETS, Augmentation
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.sources.open import open_source
from vggjax.errors import ConfigError, DataError
from vggjax.report.augment_preview import DRAWS, augmented_draws, choose_images, write_preview
from vggjax.report.thumbnails import CELL_PX, GAP_PX, LINE_PX, MARGIN_PX

MIXED = Augmentation(mixup=1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("preview") / "photos", each=4)


def preview(photos, path, preset="flip", **options):
    return write_preview(str(photos), path, augmentation=PRESETS[preset], **options)


def cells(path, rows):
    """Cut a preview into the centers of its images, (rows, 1 + DRAWS, 100, 100, 3)."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height = CELL_PX + GAP_PX + 2 * LINE_PX
    tops = [image.shape[0] - MARGIN_PX + GAP_PX - i * height for i in range(rows, 0, -1)]
    lefts = [MARGIN_PX + i * (CELL_PX + GAP_PX) for i in range(1 + DRAWS)]
    return np.array([[image[y + 50 : y + 150, x + 50 : x + 150] for x in lefts] for y in tops])


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


def test_every_class_is_shown_before_one_is_shown_twice(photos):
    source = open_source(str(photos))
    for seed in range(5):
        indices, _ = choose_images(source, Preprocessing(image_size=32), rows=5, seed=seed)
        counts = np.bincount(source.labels[indices], minlength=3)
        assert counts.sum() == 5 and counts.max() == 2 and counts.min() == 1


def test_the_seed_alone_decides(photos, tmp_path):
    images = [
        preview(photos, tmp_path / name, image_size=32, rows=2, seed=seed).read_bytes()
        for name, seed in (("a.jpg", 1), ("b.jpg", 1), ("c.jpg", 2))
    ]
    assert images[0] == images[1] != images[2]


def test_mixed_draws_know_their_labels():
    levels, labels = np.arange(0, 240, 20), np.arange(12, dtype=np.int32)
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])
    draws = augmented_draws(images, labels, MIXED)
    assert len(draws) == DRAWS
    for draw in draws:
        assert draw["other"].tolist() == np.roll(labels, -1).tolist()
        expected = draw["share"] * levels + (1 - draw["share"]) * np.roll(levels, -1)
        np.testing.assert_allclose(draw["images"][:, 0, 0, 0], expected, atol=0.51)


def test_a_mixed_preview_has_no_more_rows_than_images(photos, tmp_path):
    out = tmp_path / "a.WEBP"
    write_preview(str(photos), out, augmentation=MIXED, image_size=32, rows=50)
    with Image.open(out) as image:
        assert image.format == "WEBP"
        num_images = 4 * len(CLASSES)
        assert num_images * CELL_PX < image.height < (num_images + 1) * (CELL_PX + 3 * LINE_PX)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (".", {}, "must be a file in an existing folder"),
        ("preview.pdf", {}, "must end in .png, .jpg, .jpeg, .webp; got 'preview.pdf'"),
        ("preview", {}, "must end in"),
        ("no/such/preview.png", {}, "must be a file in an existing folder"),
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
