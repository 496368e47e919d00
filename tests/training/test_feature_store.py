"""Stored features are never stale, incomplete or another run's."""

import os

import numpy as np
import pytest
from support.cached_runs import AUGMENTED, FILE, FLIPS, HEAD, fill, make_config_of, rows_of

from vggjax.training import prepare
from vggjax.training.cache.features import feature_key
from vggjax.training.cache.store import FileStore


@pytest.fixture
def config_of(tmp_path):
    return make_config_of(tmp_path)


def test_a_killed_fill_continues_from_its_last_record(config_of, tmp_path, monkeypatch):
    settings = HEAD | FILE | {"augment": "flip", "epochs": 3}
    cached, _ = fill(config_of("whole", **settings))
    expected = [batch["features"] for batch in rows_of(cached["train"])]
    config, appended = config_of("killed", **settings), []
    append = FileStore.append

    def die(self, rows, *rest):
        append(self, rows, *rest)
        self.save()
        appended.append(len(rows))
        if len(appended) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(FileStore, "append", die)
    with pytest.raises(KeyboardInterrupt):
        fill(config)
    (path,) = (tmp_path / "killed" / "features").glob("*.npy")
    with path.open("ab") as file:
        file.write(b"half a row")  # written, and not in the record
    again, _ = fill(config)
    # 18 images by 4, eight of them before, their mirror images, and 6 images of val
    assert appended == [4, 4, 4, 4, 2, 4, 4, 4, 4, 2, 4, 2]
    np.testing.assert_array_equal(
        [batch["features"] for batch in rows_of(again["train"])], expected
    )


@pytest.mark.parametrize("damage", ["record", "short", "header", "bit"])
def test_a_damaged_file_is_never_taken_for_a_whole_one(tmp_path, damage):
    path = tmp_path / "features" / "a.npy"
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    store = FileStore(path, (4, 3), "float32")
    store.append(rows, [1], {7: "why"})
    same = FileStore(path, (4, 3), "float32")
    assert (same.done, same.masked, same.unreadable) == (4, {1}, {7: "why"})
    np.testing.assert_array_equal(same.rows(), rows)
    np.testing.assert_array_equal(np.load(path), rows)
    if damage == "record":
        path.with_name("a.npy.json").write_text('{"rows": 4')
    elif damage == "short":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "bit":
        data = bytearray(path.read_bytes())
        data[-7] ^= 4
        path.write_bytes(data)
    else:
        path.write_bytes(b"\0" + path.read_bytes()[1:])
    assert FileStore(path, (4, 3), "float32").done == 0


def test_every_weight_image_and_setting_before_the_cut_changes_the_key(config_of, tmp_path):
    def key(view=0, split="train", change=None, after=None, **settings):
        run = prepare.prepare_run(config_of("run", **settings))
        if change:
            change(run)
        return feature_key(run, run.feature_plans["head"], split, view, after=after)

    def change_weight(layer):
        def change(run):
            kernel = getattr(run.model, layer).kernel
            kernel.set_value(kernel.get_value().at[0, 0].add(1e-7))

        return change

    first = key()
    assert key() == first
    # Neither what comes after the cut nor what affects only learning changes it.
    same = dict(learning_rate=1.0, num_threads=1, feature_cache_mb=9, seed=0)
    assert key(change=change_weight("fc1"), **same) == first
    assert key(**FLIPS, epochs=5) == first  # the image itself
    others = [
        key(change=change_weight("block1_conv1")),
        key(change=change_weight("block5_conv2")),
        key(split="val"),
        key(preprocess="unit"),
        key(interpolation="nearest"),
        key(image_size=64),
        key(convolution="direct"),
        key(dtype="bfloat16"),
        key(feature_dtype="bfloat16"),
        key(head="flatten-8-0.5-classes"),
        key(batch_size=5),
        key(seed=1),  # other splits
        key(**FLIPS, epochs=5, view=1),
        key(**FLIPS, epochs=5, view=2),
        key(after="block4_pool"),
        key(**AUGMENTED),
        key(**AUGMENTED, view=1),
        key(**AUGMENTED | {"brightness_range": (0.5, 1.6)}),
    ]
    for image in (tmp_path / "images").rglob("*.png"):
        os.utime(image, ns=(1, 1))  # written anew, of the same size
    others.append(key())
    assert len({first, *others}) == 1 + len(others)


def test_bfloat16_halves_the_size_in_memory_and_in_a_file(config_of):
    expected = rows_of(fill(config_of("32"))[0]["train"])[0]["features"]
    for where in ({}, FILE):
        cached, run = fill(config_of("16", feature_dtype="bfloat16", **where))
        features = rows_of(cached["train"])[0]["features"]
        assert str(features.dtype) == "bfloat16"
        np.testing.assert_allclose(features.astype(np.float32), expected, rtol=2**-7)
        assert run.feature_plans["head"].size_bytes == 2 * 8 * 24  # 8 channels of 18 and 6 images
