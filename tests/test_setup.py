"""Before the first step: the same pictures stay in one split, and are looked for once."""

import functools
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_run import add_tiny_arch, make_pictures

from vggjax.errors import ConfigError
from vggjax.training import setup
from vggjax.training.config import Config
from vggjax.training.run_folder import make_workdir
from vggjax.training.screen import print_first_screen
from vggjax.training.setup import set_up
from vggjax.training.sharding import Placement


@pytest.fixture
def pictures(tmp_path, monkeypatch, tiny_arch):
    add_tiny_arch(monkeypatch, tiny_arch)
    one_device = functools.partial(Placement, devices=jax.devices()[:1])
    monkeypatch.setattr(setup, "Placement", one_device)
    return make_pictures(tmp_path / "pictures", ("a", "b"), each=8)


def make_config(dataset, workdir, **settings):
    defaults = dict(model="tiny", weights="none", head="gap-classes", image_size=32)
    return Config(dataset=str(dataset), workdir=str(workdir), **defaults | settings)


def first_screen(run):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_first_screen(console, run)
    console.file.close()
    return console.export_text()


def split_of(run, name):
    i = run.source.ids.index(name)
    (found,) = [split for split, indices in run.splits.items() if i in indices]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_copies_stay_in_one_split_and_are_counted_on_the_first_screen(pictures, tmp_path, seed):
    for name in ("one", "two", "three"):
        shutil.copy(pictures / "a" / "03.png", pictures / "a" / f"{name}.png")
    run = set_up(make_config(pictures, tmp_path / "run", split="0.4,0.3,0.3", seed=seed))
    names = ("a/03.png", "a/one.png", "a/two.png", "a/three.png")
    assert len({split_of(run, name) for name in names}) == 1
    assert run.duplicates == {"exact": 3, "near": 0, "leaked": 0}
    assert "3 exact, each in one split with its like" in first_screen(run)


def test_a_picture_saved_smaller_is_near_unless_only_exact_ones_count(pictures, tmp_path):
    blobs = np.random.default_rng(2).integers(0, 256, (7, 7, 3), np.uint8)
    photo = Image.fromarray(blobs).resize((96, 96), Image.Resampling.BICUBIC)
    photo.save(pictures / "b" / "photo.png")
    photo.resize((64, 64)).save(pictures / "b" / "small.jpg", quality=80)
    counts = {}
    for duplicates in ("near", "exact", "ignore"):
        run = set_up(make_config(pictures, tmp_path / duplicates, duplicates=duplicates))
        counts[duplicates] = run.duplicates
    assert counts["near"] == {"exact": 0, "near": 1, "leaked": 0}
    assert counts["exact"] == {"exact": 0, "near": 0, "leaked": 0}
    assert counts["ignore"] == {}


def test_what_the_data_sets_own_splits_leak_is_told(tmp_path, pictures):
    root = tmp_path / "split"
    shutil.copytree(pictures, root / "train")
    for name in ("a", "b"):
        (root / "test" / name).mkdir(parents=True)
        (pictures / name / "07.png").rename(root / "test" / name / "07.png")
        (root / "train" / name / "07.png").unlink()
    shutil.copy(root / "train" / "a" / "00.png", root / "test" / "a" / "again.png")
    run = set_up(make_config(root, tmp_path / "run"))
    assert run.duplicates == {"exact": 1, "near": 0, "leaked": 1}
    assert "1 that the data set has in train too" in first_screen(run)


def test_a_resumed_run_compares_no_pictures_and_has_the_same_splits(
    pictures, tmp_path, monkeypatch
):
    shutil.copy(pictures / "a" / "03.png", pictures / "a" / "copy.png")
    config = make_config(pictures, tmp_path / "run")
    first = set_up(config)
    make_workdir(first.workdir, first.config, first.source, first.splits, first.duplicates)
    monkeypatch.setattr(setup, "find_duplicates", lambda *_, **__: pytest.fail("compared again"))
    again = set_up(config)
    assert again.duplicates == first.duplicates
    for name, indices in first.splits.items():
        np.testing.assert_array_equal(again.splits[name], indices)


def test_a_class_with_one_picture_trains_and_is_told(pictures, tmp_path):
    (pictures / "rare").mkdir()
    shutil.copy(pictures / "a" / "00.png", pictures / "rare" / "0.png")
    Image.new("RGB", (9, 9), "red").save(pictures / "rare" / "0.png")
    run = set_up(make_config(pictures, tmp_path / "run", class_weights="balanced"))
    assert split_of(run, "rare/0.png") == "train"
    text = first_screen(run)
    assert "Class 'rare' has only 1 picture, in train alone" in text
    assert "(rare) in the loss" in text
    assert run.class_weights.argmax() == run.source.class_names.index("rare")


@pytest.mark.parametrize("spoil", ["swap", "drop", "double"])
def test_splits_that_were_changed_by_hand_are_refused(pictures, tmp_path, spoil):
    config = make_config(pictures, tmp_path / "run")
    first = set_up(config)
    make_workdir(first.workdir, first.config, first.source, first.splits, first.duplicates)
    path = tmp_path / "run" / "splits.csv"
    lines = path.read_text().splitlines()
    changed = {
        "swap": [line.replace("train", "TEST").replace("test", "train") for line in lines],
        "drop": lines[:-1],
        "double": [*lines, lines[-1]],
    }[spoil]
    path.write_text("\n".join(changed).replace("TEST", "test") + "\n")
    with pytest.raises(ConfigError, match="splits.csv was changed since the run began"):
        set_up(config)


def test_what_changed_in_the_data_set_is_named(pictures, tmp_path):
    config = make_config(pictures, tmp_path / "run")
    first = set_up(config)
    make_workdir(first.workdir, first.config, first.source, first.splits, first.duplicates)
    (pictures / "a" / "00.png").rename(pictures / "b" / "new.png")
    with pytest.raises(ConfigError, match=r"trained on: new: b/new.png; gone: a/00.png\. Put"):
        set_up(config)


def test_a_split_that_is_not_used_is_told(pictures, tmp_path):
    root = tmp_path / "split"
    for split in ("train", "val", "test"):
        shutil.copytree(pictures, root / split)
    settings = dict(duplicates="ignore", split="0.5,0.25,0.25")
    run = set_up(make_config(root, tmp_path / "run", **settings))
    assert "--split 0.5,0.25,0.25 is not used: the data set has its own" in first_screen(run)
