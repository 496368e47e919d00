"""16-bit sets are scaled by their own range, transparency is laid over the chosen background."""

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import make_run
from support.training_runs import make_config

from vggjax.data.quality.doctor import examine
from vggjax.data.sources.open import open_source
from vggjax.data.sources.options import DatasetOptions
from vggjax.data.sources.rendering import render_source
from vggjax.errors import ConfigError, DataError
from vggjax.evaluation.predict import load_run
from vggjax.report.thumbnails import Thumbnails
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.run_result import ModelInfo, load_run_result, read_info


def scans(folder, low=0, high=4095, *, ending=".png", each=5):
    """Write 16-bit gray images of two classes whose numbers reach from low to high."""
    for label, name in enumerate(("covid", "normal")):
        for i in range(each):
            rng = np.random.default_rng(10 * label + i)
            coarse = np.kron(rng.random((8, 8)), np.ones((8, 8))) + 0.2 * rng.random((64, 64))
            shares = (coarse - coarse.min()) / np.ptp(coarse)
            (folder / name).mkdir(parents=True, exist_ok=True)
            numbers = (low + shares * (high - low)).astype(np.uint16)
            Image.fromarray(numbers).save(folder / name / f"{i}{ending}")
    return folder


def rendered(folder, **options):
    options = DatasetOptions(**options)
    return render_source(open_source(str(folder), options=options), options)


@pytest.mark.parametrize(
    "low, high, ending, levels",
    [(0, 4095, ".png", 17), (33069, 36863, ".png", 15), (0, 5000, ".tif", 20)],
)
def test_a_set_that_uses_few_levels_is_scaled_by_its_own_range(tmp_path, low, high, ending, levels):
    scans(tmp_path, low, high, ending=ending)
    source, rendering = rendered(tmp_path)
    assert rendering.pixel_range == (low, high)
    assert len(np.unique(source.read(0).pixels)) >= 200
    text = f"use {levels} of 256 levels: {low} to {high} of 65535; "
    assert text in source.notes[-1] and "`pixel_range`" in source.notes[-1]
    findings = examine(str(tmp_path))
    assert text in findings.of("note")[-1].text and findings.exit_code == 0


def test_the_range_is_that_of_the_training_images(tmp_path):
    scans(tmp_path / "train")
    scans(tmp_path / "test", 0, 60_000)
    assert rendered(tmp_path)[1].pixel_range == (0, 4095)


def test_a_full_range_and_8_bits_stay_as_they_are(tmp_path):
    scans(tmp_path, 100, 60_000)
    source, rendering = rendered(tmp_path)
    assert rendering.pixel_range is None and not source.notes
    np.testing.assert_array_equal(source.read(3).pixels, open_source(str(tmp_path)).read(3).pixels)
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40), np.uint8)).save(path)
    assert rendered(tmp_path)[1].pixel_range is None


def test_a_given_range_is_used_and_a_wrong_one_refused(tmp_path):
    source, rendering = rendered(scans(tmp_path), pixel_range=(0, 65535))
    assert len(np.unique(source.read(0).pixels)) == 17 and not source.notes
    for wrong in ((5,), (9, 3), (1, 2, 3)):
        with pytest.raises(ConfigError, match="`pixel_range` must be two numbers"):
            DatasetOptions(pixel_range=wrong)


def test_signed_integers_get_the_range_that_they_lack(tmp_path):
    scans(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        numbers = np.asarray(Image.open(path)).astype(np.int32) - 1024
        Image.fromarray(numbers).save(path.with_suffix(".tif"))
        path.unlink()
    source, rendering = rendered(tmp_path)
    assert rendering.pixel_range == (-1024, 3071)
    assert "from -1,024 to 3,071" in source.notes[-1]


@pytest.mark.parametrize("most, expected", [(0.9, (0, 1)), (240, (0, 255)), (300, (0, 300))])
def test_the_range_of_floats_is_decided_for_the_set_and_said(tmp_path, most, expected):
    scans(tmp_path, 0, 1000)
    for i, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        numbers = np.asarray(Image.open(path)).astype(np.float32) * (most / 1000)
        Image.fromarray(numbers * (1 if i else 0.001)).save(path.with_suffix(".tif"))  # a dark one
        path.unlink()
    source, rendering = rendered(tmp_path)
    assert rendering.pixel_range == pytest.approx(expected)
    assert source.read(0).pixels.max() <= 1 and source.read(1).pixels.max() > 200
    assert "`pixel_range`" in source.notes[-1]


def test_the_range_is_saved_with_the_model_and_used_for_all_that_is_read_later(tmp_path):
    data = scans(tmp_path / "data", each=10)
    prepared = prepare_run(make_config(data, tmp_path / "new"))
    assert prepared.config.pixel_range == prepared.info.preprocessing.pixel_range == (0, 4095)
    make_run(tmp_path / "run", data, pixel_range=prepared.config.pixel_range)
    assert read_info(tmp_path / "run").preprocessing.pixel_range == (0, 4095)
    run = load_run_result(tmp_path / "run")
    image = run.source.read(0)
    assert len(np.unique(image.pixels)) >= 200
    assert len(np.unique(Thumbnails(run.source).image(0))) >= 200
    path = data / "covid" / "0.png"
    classifier = load_run(tmp_path / "run")
    for given in (path, Image.open(path)):
        np.testing.assert_array_equal(classifier.read(given).pixels, image.pixels)


def drawings(folder):
    """Write white drawings on transparency."""
    for label, name in enumerate(("circle", "square")):
        for i in range(6):
            alpha = np.zeros((40, 40), np.uint8)
            alpha[4 + 3 * i : 20 + 3 * i, 5 + 9 * label : 30] = 255
            image = Image.new("L", (40, 40), 255)
            image.putalpha(Image.fromarray(alpha))
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{i}.png")
    return folder


def test_white_drawings_on_transparency_are_named_with_the_way_out(tmp_path):
    data = drawings(tmp_path / "data")
    findings = examine(str(data))
    (fault,) = findings.of("refused")
    assert fault.text.startswith("12 of 12 images are one color once transparency is laid over whi")
    assert fault.text.endswith("Give `background` black.")
    assert len(findings.of("blank")) == 12 and findings.exit_code == 2
    config = make_config(data, tmp_path / "run")
    with pytest.raises(DataError, match="12 of 12 images are one color"):
        prepare_run(config)


def test_the_background_is_saved_and_a_few_blank_images_are_only_named(tmp_path):
    data = drawings(tmp_path / "data")
    run = prepare_run(make_config(data, tmp_path / "run", background="black"))
    assert run.info.preprocessing.background == "black"
    assert run.source.read(0).pixels.min() == 0 and run.source.read(0).pixels.max() == 255
    Image.new("LA", (40, 40)).save(data / "circle" / "empty.png")
    options = DatasetOptions(background="black")
    findings = examine(str(data), options=options)
    assert len(findings.of("blank")) == 1 and not findings.of("refused")


def test_a_model_of_an_older_version_uses_the_full_range(tmp_path):
    info = ModelInfo("vgg16", "gap-2", ("a", "b"), make_config(tmp_path, tmp_path).preprocessing)
    fields = info.preprocessing.to_json()
    del fields["background"], fields["pixel_range"]
    assert type(info.preprocessing).from_json(fields) == info.preprocessing
    assert info.preprocessing.rendering.pixel_range is None
