"""Preparing a run: duplicates stay in one split, are searched for once, and data is checked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.tiny_run import make_images
from support.training_runs import pretend_pretrained

from vggjax.errors import ConfigError, DataError
from vggjax.models.convnets import find_arch
from vggjax.training import prepare
from vggjax.training.config import Config
from vggjax.training.console import print_run_summary
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.folder import make_workdir


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images", ("a", "b"), each=8)


def make_config(dataset, workdir, **settings):
    defaults = dict(model="tiny", weights="none", head="gap-classes", image_size=32, devices=1)
    return Config(dataset=str(dataset), workdir=str(workdir), **defaults | settings)


def begin_run(images, workdir):
    """Write what a first start leaves in its folder; return its settings and the run."""
    config = make_config(images, workdir)
    run = prepare_run(config)
    make_workdir(workdir, run.config, run.source, run.splits, run.duplicates)
    return config, run


def summary_text(run):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_run_summary(console, run)
    console.file.close()
    return console.export_text()


def split_of(run, name):
    i = run.source.ids.index(name)
    (split,) = [split for split, indices in run.splits.items() if i in indices]
    return split


def test_copies_stay_in_one_split_and_are_counted_in_the_summary(images, tmp_path):
    for name in ("one", "two", "three"):
        shutil.copy(images / "a" / "03.png", images / "a" / f"{name}.png")
    run = prepare_run(make_config(images, tmp_path / "run", split="0.4,0.3,0.3"))
    names = ("a/03.png", "a/one.png", "a/two.png", "a/three.png")
    assert len({split_of(run, name) for name in names}) == 1
    assert run.duplicates == {"exact": 3, "near": 0, "turned": 0, "leaked": 0}
    assert "3 exact duplicates, kept in the same split" in summary_text(run)


def test_a_resized_copy_is_a_near_duplicate_unless_only_exact_ones_count(images, tmp_path):
    blobs = np.random.default_rng(2).integers(0, 256, (7, 7, 3), np.uint8)
    photo = Image.fromarray(blobs).resize((96, 96), Image.Resampling.BICUBIC)
    photo.save(images / "b" / "photo.png")
    photo.resize((64, 64)).save(images / "b" / "small.jpg", quality=80)
    counts = {}
    for duplicates in ("near", "exact", "ignore"):
        run = prepare_run(make_config(images, tmp_path / duplicates, duplicates=duplicates))
        counts[duplicates] = run.duplicates
    assert counts["near"] == {"exact": 0, "near": 1, "turned": 0, "leaked": 0}
    assert counts["exact"] == {"exact": 0, "near": 0, "turned": 0, "leaked": 0}
    assert counts["ignore"] == {}


def test_duplicates_across_the_dataset_s_own_splits_are_reported(tmp_path, images):
    root = tmp_path / "split"
    shutil.copytree(images, root / "train")
    for name in ("a", "b"):
        (root / "test" / name).mkdir(parents=True)
        (images / name / "07.png").rename(root / "test" / name / "07.png")
        (root / "train" / name / "07.png").unlink()
    shutil.copy(root / "train" / "a" / "00.png", root / "test" / "a" / "again.png")
    shutil.copy(root / "train" / "a" / "00.png", root / "train" / "a" / "again.png")
    run = prepare_run(make_config(root, tmp_path / "run"))
    assert run.duplicates == {"exact": 2, "near": 0, "turned": 0, "leaked": 1}
    assert "1 that the dataset has in train too" in summary_text(run)


def test_a_resumed_run_compares_no_images_and_has_the_same_splits(images, tmp_path, monkeypatch):
    shutil.copy(images / "a" / "03.png", images / "a" / "copy.png")
    config, first = begin_run(images, tmp_path / "run")
    monkeypatch.setattr(prepare, "find_duplicates", lambda *_, **__: pytest.fail("compared again"))
    again = prepare_run(config)
    assert again.duplicates == first.duplicates
    for name, indices in first.splits.items():
        np.testing.assert_array_equal(again.splits[name], indices)


def test_a_class_with_one_image_is_in_train_and_reported(images, tmp_path):
    (images / "rare").mkdir()
    shutil.copy(images / "a" / "00.png", images / "rare" / "0.png")
    Image.new("RGB", (9, 9), "red").save(images / "rare" / "0.png")
    run = prepare_run(make_config(images, tmp_path / "run", class_weights="balanced"))
    assert split_of(run, "rare/0.png") == "train"
    text = summary_text(run)
    assert "Class 'rare' has 1 image" in text
    assert "(rare) in the loss" in text
    assert run.class_weights.argmax() == run.source.class_names.index("rare")


@pytest.mark.parametrize("spoil", ["swap", "drop", "double"])
def test_splits_that_were_changed_by_hand_are_refused(images, tmp_path, spoil):
    config, _ = begin_run(images, tmp_path / "run")
    path = tmp_path / "run" / "splits.csv"
    lines = path.read_text().splitlines()
    changed = {
        "swap": [line.replace("train", "TEST").replace("test", "train") for line in lines],
        "drop": lines[:-1],
        "double": [*lines, lines[-1]],
    }[spoil]
    path.write_text("\n".join(changed).replace("TEST", "test") + "\n")
    with pytest.raises(ConfigError, match="splits.csv was changed since the run began"):
        prepare_run(config)


def test_what_changed_in_the_dataset_is_named(images, tmp_path):
    config, _ = begin_run(images, tmp_path / "run")
    (images / "a" / "00.png").rename(images / "b" / "new.png")
    with pytest.raises(DataError, match=r"trained on: new: b/new.png; gone: a/00.png\. Rest"):
        prepare_run(config)


def test_a_split_setting_that_is_not_used_is_reported(images, tmp_path):
    root = tmp_path / "split"
    for split in ("train", "val", "test"):
        shutil.copytree(images, root / split)
    settings = dict(duplicates="ignore", split="0.5,0.25,0.25")
    run = prepare_run(make_config(root, tmp_path / "run", **settings))
    assert "--split 0.5,0.25,0.25 is not used: the dataset has its own" in summary_text(run)


def test_a_batch_larger_than_the_data_is_the_data(images, tmp_path):
    run = prepare_run(make_config(images, tmp_path / "run", batch_size=10**9))
    assert (run.batch_size, run.steps_per_epoch) == (len(run.splits["train"]), 1)


def test_a_run_folder_inside_the_data_is_refused(images):
    with pytest.raises(ConfigError, match="is inside the dataset"):
        prepare_run(make_config(images, images / "runs" / "1"))
    assert not (images / "runs").exists()


def test_a_weight_file_is_opened_once(images, tmp_path, monkeypatch):
    weights, opened = pretend_pretrained(tmp_path, find_arch("tiny")), []

    def open_and_record(path, *args):
        opened.append(path)
        return weight_file(path, *args)

    weight_file = prepare.WeightFile
    monkeypatch.setattr(prepare, "WeightFile", open_and_record)
    run = prepare_run(make_config(images, tmp_path / "run", weights=str(weights)))
    assert [*map(Path, opened)] == [weights] and run.info.provenance["weights_format"]
