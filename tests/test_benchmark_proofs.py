"""benchmarks/heads.py, mistakes.py and truth.py on few photographs and a small network."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="the tests are not run from the repository's folder")
from flax import nnx
from support.tiny_run import make_images

from benchmarks import heads, mistakes, truth
from vggjax.data.images.preprocess import Preprocessing, preprocess, resize_image
from vggjax.data.sources.open import open_source
from vggjax.models.arch import ARCHS
from vggjax.models.head import Head
from vggjax.models.network import Network


@pytest.fixture
def features():
    """Return features of four classes that differ in their channels, and the labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4, dtype=np.int32), 30)
    x = rng.random((120, 1, 1, 8), np.float32)
    x[np.arange(120), 0, 0, labels] += 1
    return x, labels


@pytest.fixture
def trainer(monkeypatch):
    monkeypatch.setitem(ARCHS, "vgg16", ARCHS["tiny"])
    return heads.HeadTrainer(
        1, 4, head="gap-classes", epochs=30, learning_rate=0.05, optimizer="adam", augment="none"
    )


def test_a_head_learns_and_is_a_function_of_its_seed(trainer, features):
    x, labels = features
    first, again, other = (trainer.train(x[:110], labels[:110], seed=s)(x) for s in (0, 0, 1))
    assert (first == labels).mean() > 0.9
    np.testing.assert_array_equal(first, again)
    assert (other == labels).mean() > 0.9


def test_mistakes_cost_what_they_must(tmp_path, trainer, features, monkeypatch):
    x, labels = features

    class Given:
        name, class_names, split = "photos", tuple("abcd"), heads.Photographs.split

        def __len__(self):
            return len(labels)

        def pixels(self, preprocessing):
            return np.empty(0)

    given = Given()
    given.labels = labels
    shift = {"right": 0, "unit": 1}  # of the channels: x/255 loses the class in this test

    def fake_features(images, weights, *, pixels, kept):
        return np.roll(x, shift.get(kept.stem.split("-")[-1], 0), axis=-1)

    monkeypatch.setattr(mistakes, "features_of", fake_features)
    monkeypatch.setattr(mistakes, "HeadTrainer", lambda *_, **__: trainer)
    rows = {r.what: r for r in mistakes.measure(given, tmp_path, work=tmp_path, seeds=2)}
    unit = rows[mistakes.MISTAKES["unit"].what]
    assert np.mean(unit.right) > 0.8 and np.mean(unit.wrong) > 0.8 > 0.5 > np.mean(unit.only_test)
    assert np.mean(rows["labels in another order than the cached features"].wrong) < 0.6
    leak = rows["the test images are among the training images"]
    assert np.mean(leak.wrong) >= np.mean(leak.right)
    (tmp_path / "page.md").write_text("<!-- photos --><!-- /photos -->")
    mistakes.write_table(tmp_path / "page.md", "photos", list(rows.values()), remark="remark")
    page = (tmp_path / "page.md").read_text()
    assert page.count("\n| ") == len(rows) + 2 and "remark" in page


def test_photographs_are_chosen_and_split_by_class(tmp_path):
    photographs = heads.Photographs(make_images(tmp_path / "photos", ("a", "b"), each=10), 12)
    assert np.bincount(photographs.labels).tolist() == [6, 6]
    train, test = photographs.split(0)
    assert sorted([*train, *test]) == list(range(12))
    assert np.bincount(photographs.labels[test]).tolist() == [2, 2]
    assert not np.array_equal(test, photographs.split(1)[1])
    assert len(truth.paths_of(photographs)) == 12


def test_each_mistake_prepares_other_pixels():
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    right = np.asarray(preprocess(x))
    kinds = {name: np.asarray(kind.prepare(x)) for name, kind in mistakes.MISTAKES.items()}
    assert np.abs(kinds["unit"]).max() <= 1
    np.testing.assert_allclose(kinds["uncentered"], x[..., ::-1], atol=1e-4)
    np.testing.assert_array_equal(kinds["rgb"], np.asarray(preprocess(x[..., ::-1])))
    assert not np.array_equal(kinds["rgb"], right)
    np.testing.assert_array_equal(kinds["crop"], right)


def test_a_row_of_the_truth_agrees_only_within_its_bound():
    theirs = np.array([[0.0, 2.0]])
    assert truth.difference_row("x", theirs + 1e-5, theirs).holds
    assert not truth.difference_row("x", theirs + 1e-3, theirs).holds
    assert truth.head_row("x", [0.7, 0.72, 0.71], [0.71, 0.71, 0.71], images=100).holds
    assert not truth.head_row("x", [0.6, 0.61, 0.6], [0.7, 0.71, 0.7], images=100).holds


def test_lines_of_other_measurements_stay(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- truth --><!-- /truth -->")
    for what in ("a", "b", "a"):
        truth.write_rows(page, [truth.Row(what, "1", "1", "0", True)])
    assert page.read_text().count("\n| a ") == page.read_text().count("\n| b ") == 1


def test_a_head_of_keras_has_the_layers_of_the_text_form(keras, features):
    x, labels = features
    classify = truth.train_keras(
        np.tile(x, (1, 2, 2, 1)), labels, 4, head="avg2-8-0.1-classes", seed=0, optimizer="nadam",
        learning_rate=0.05,
    )  # fmt: skip
    assert (classify(np.tile(x, (1, 2, 2, 1))) == labels).mean() > 0.9


def test_batch_statistics_are_compared_with_the_accuracy_of_the_run(tmp_path, monkeypatch):
    source = open_source(str(make_images(tmp_path / "photos", each=4)))
    info = SimpleNamespace(preprocessing=Preprocessing(mode="unit", image_size=32))
    model = Network("tiny_bn", head=Head("gap", outputs=3), image_size=32, rngs=nnx.Rngs(1))
    run = SimpleNamespace(source=source, splits={"test": np.arange(12)}, info=info, model=model)
    monkeypatch.setattr(mistakes, "load_run_result", lambda *_, **__: run)
    pixels = np.stack([resize_image(source.read(i).pixels, info.preprocessing) for i in range(12)])
    model.eval()
    predicted = np.asarray(model(preprocess(pixels, "unit")).argmax(1))
    before = np.asarray(model.block1_bn1.mean[...])
    rows = list(mistakes.measure_batch_norm(tmp_path, batch_size=4))
    assert [row.right for row in rows] == [[float((predicted == source.labels).mean())]] * 3
    assert all(0 <= row.only_test[0] <= 1 for row in rows)
    assert mistakes.table_rows(rows)[0][1:3] == ["", ""]
    np.testing.assert_array_equal(model.block1_bn1.mean[...], before)
