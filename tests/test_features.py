"""The kept features: the same training without the frozen layers, and never stale."""

import dataclasses
import functools
import os
import signal

import jax
import numpy as np
import pytest
from rich.console import Console
from test_loop import assert_same_weights, log_without_times, make_config, weights_of
from test_loop import pretend_pretrained as pretrained
from tiny_run import add_tiny_arch, make_pictures

from vggjax.data.preprocess import preprocess
from vggjax.errors import ConfigError
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.vgg import VGG
from vggjax.training import feature_plan, loop, setup
from vggjax.training.feature_plan import find_cut
from vggjax.training.feature_store import FileStore
from vggjax.training.features import Features, feature_key, kept_features
from vggjax.training.freezing import label_layers
from vggjax.training.loop import Interrupted, train
from vggjax.training.run_folder import make_workdir, read_log
from vggjax.training.sharding import Placement
from vggjax.training.signals import Stop

FILE = {"feature_cache_mb": 0}
"""Every feature then goes to a file."""

HEAD = {"unfreeze": "none", "head_epochs": None, "epochs": 2}

DRAWN = {"brightness_range": (0.5, 1.5), "cached_views": 2}


@pytest.fixture
def config_of(tmp_path, monkeypatch, tiny_arch):
    """Makes configs of a run that keeps features in both of its stages, two epochs each."""
    add_tiny_arch(monkeypatch, tiny_arch)
    one_device = functools.partial(Placement, devices=jax.devices()[:1])
    monkeypatch.setattr(setup, "Placement", one_device)
    pictures = make_pictures(tmp_path / "pictures", ("a", "b", "c"), each=10)
    weights = str(pretrained(tmp_path, tiny_arch))
    fixed = dict(
        weights=weights, unfreeze="block5", epochs=4, head_epochs=2, augment="none",
        duplicates="ignore",
    )  # fmt: skip

    def make(name, **settings):
        return make_config(pictures, tmp_path / name, **fixed | settings)

    return make


def interrupt_at(monkeypatch, step):
    """Sends this process SIGTERM when the given step is reached, also in the middle of a chunk."""
    make = loop.make_train_step

    def make_train_step(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def interrupted(state, batch):
            if int(state.step) >= step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(state, batch)

        return interrupted

    monkeypatch.setattr(loop, "make_train_step", make_train_step)


class Quiet:
    """A screen that shows nothing."""

    def begin(self, *_, **__):
        pass

    advance = say = begin


def fill(config, *, stage=0):
    """Gives the features of a stage of a new run: {split: Features}, and its set-up."""
    run = setup.set_up(config)
    make_workdir(run.workdir, config, run.source, run.splits)
    with kept_features(run, run.stages[stage], Quiet(), Stop()) as (kept, cut):
        assert cut == run.features[run.stages[stage].name].cut
    return kept.examples, run


def rows_of(kept: Features, **options):
    return [batch for batch in kept.batches(4, **options)]


@pytest.mark.parametrize(
    ("unfreeze", "head", "cut"),
    [
        ("none", "gap-8-0.5-3", "gap"),
        ("none", "flatten-3", "flatten"),
        ("none", "avg2-8-3", "flatten"),
        ("none", "gap-0.5-3", "block5_pool"),  # dropout follows the pooled features
        ("block5", "gap-3", "block4_pool"),
        ("block5_conv2", "gap-3", "block5_bn1"),
        ("block5_bn1", "gap-3", "block5_conv1"),
        ("block1_conv1", "gap-3", None),
        ("all", "gap-3", None),
    ],
)
def test_the_cut_is_the_deepest_layer_before_anything_random_or_trained(unfreeze, head, cut):
    arch = Arch("tiny_bn", (1, 1, 1, 1, 2), (4, 4, 4, 4, 4), batch_norm=True)
    model = VGG(arch, head=Head.parse(head), image_size=64)
    assert find_cut(model, label_layers(model, (unfreeze,))) == cut


def test_a_run_with_kept_features_learns_what_one_without_learns(config_of, tmp_path):
    train(config_of("off", cache_features="off"))
    train(config_of("kept"))
    train(config_of("file", **FILE))
    ours, theirs = weights_of(tmp_path / "kept"), weights_of(tmp_path / "off")
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-6, err_msg=name)
    for one, other in zip(read_log(tmp_path / "kept"), read_log(tmp_path / "off"), strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-6)
    assert_same_weights(tmp_path / "kept", tmp_path / "file")
    assert not (tmp_path / "file" / "features").exists()


# 18 pictures make 9 steps of 2: the head learns until step 18, in chunks of two steps.
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        pytest.param(HEAD | FILE, (4, 11), id="chunks"),
        pytest.param({}, (13, 23), id="memory", marks=pytest.mark.slow),
        pytest.param(DRAWN | FILE, (13, 23), id="views", marks=pytest.mark.slow),
    ],
)
def test_a_run_interrupted_in_a_stage_ends_with_the_same_weights(
    config_of, tmp_path, monkeypatch, settings, steps
):
    settings = {"batch_size": 2} | settings
    train(config_of("whole", **settings))
    for step in steps:
        broken = config_of("broken", **settings)
        with monkeypatch.context() as patched:
            interrupt_at(patched, step)
            with pytest.raises(Interrupted):
                train(broken)
        kept = tmp_path / "broken" / "features"
        assert kept.exists() == ("feature_cache_mb" in settings)
    train(broken)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    whole, resumed = map(log_without_times, (tmp_path / "whole", tmp_path / "broken"))
    assert whole == resumed


def test_features_come_in_the_batches_of_their_pictures(config_of):
    config = config_of("run")
    kept, run = fill(config)
    order = dict(seed=3, epoch=1, shuffle=True)
    model, mode = run.model, config.preprocessing.mode
    whole = list(run.examples["train"].batches(4, **order))
    for which in range(2):
        mine = rows_of(kept["train"], **order, process=(which, 2), start=1)
        for ours, theirs in zip(mine, whole[1:], strict=True):
            rows = slice(2 * which, 2 * which + 2)
            for name in ("label", "mask", "index"):
                np.testing.assert_array_equal(ours[name], theirs[name][rows])
            expected = model(preprocess(theirs["images"][rows], mode), until="gap")
            there = ours["mask"] > 0
            np.testing.assert_allclose(
                ours["features"][there], np.asarray(expected)[there], rtol=1e-5
            )
            assert not ours["features"][~there].any()


def test_pictures_are_decoded_once(config_of, monkeypatch):
    read, opened = [], setup.open_source

    def open_source(*args, **kwargs):
        source = opened(*args, **kwargs)
        return dataclasses.replace(source, read=lambda i: read.append(i) or source.read(i))

    monkeypatch.setattr(setup, "open_source", open_source)
    config = config_of("run", **HEAD, cache_mb=0)
    train(config)
    splits = setup.set_up(config).splits
    assert sorted(read) == sorted([*splits["train"], *splits["val"]])


@pytest.mark.parametrize("where", [{}, FILE], ids=["memory", "file"])
def test_unreadable_pictures_keep_mask_0_and_are_named_also_after_a_kill(
    config_of, tmp_path, monkeypatch, where
):
    config = config_of("run", **HEAD, cache_mb=0, max_unreadable=0.2, **where)
    run = setup.set_up(config)
    bad = run.source.ids[run.splits["train"][0]]
    (tmp_path / "pictures" / bad).write_bytes(b"no picture")
    kept, _ = fill(config_of("other", **HEAD, cache_mb=0, max_unreadable=0.2, **where))
    masks = np.concatenate([batch["mask"] for batch in rows_of(kept["train"])])
    assert masks.tolist() == [0] + 17 * [1] + 2 * [0]
    with monkeypatch.context() as patched:
        interrupt_at(patched, 8)
        with pytest.raises(Interrupted):
            train(config)
    assert train(config).info.left_out == {bad: "not an image"}


def test_a_fill_that_was_killed_goes_on_where_it_stood(config_of, tmp_path, monkeypatch):
    kept, _ = fill(config_of("whole", **FILE))
    expected = [batch["features"].copy() for batch in rows_of(kept["train"])]
    config, appended = config_of("killed", **FILE), []
    append = FileStore.append

    def die(self, rows, *rest):
        append(self, rows, *rest)
        self.pause()
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
    assert appended == [4, 4, 4, 4, 2, 4, 2]  # 18 pictures by 4, eight of them before; then 6
    for ours, theirs in zip(rows_of(again["train"]), expected, strict=True):
        np.testing.assert_array_equal(ours["features"], theirs)


@pytest.mark.parametrize("damage", ["record", "short", "header"])
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
    else:
        path.write_bytes(b"\0" + path.read_bytes()[1:])
    assert FileStore(path, (4, 3), "float32").done == 0


def test_every_weight_picture_and_setting_has_its_part_in_the_key(config_of, tmp_path):
    def key(view=0, split="train", prepare=None, **settings):
        run = setup.set_up(config_of("run", **settings))
        if prepare:
            prepare(run)
        return feature_key(run, run.features["head"], split, view)

    def change_weight(layer):
        def change(run):
            kernel = getattr(run.model, layer).kernel
            kernel.set_value(kernel.get_value().at[0, 0].add(1e-7))

        return change

    first = key()
    assert key() == first
    # What comes after the cut, and what only learns, is no part of it.
    same = dict(learning_rate=1.0, num_threads=1, feature_cache_mb=9, seed=0)
    assert key(prepare=change_weight("fc1"), **same) == first
    others = [
        key(prepare=change_weight("block1_conv1")),
        key(prepare=change_weight("block5_conv2")),
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
        key(**DRAWN),
        key(**DRAWN, view=1),
        key(**DRAWN | {"brightness_range": (0.5, 1.6)}),
    ]
    picture = tmp_path / "pictures" / "a" / "00.png"
    for name in ("a", "b", "c"):
        for picture in (tmp_path / "pictures" / name).iterdir():
            os.utime(picture, ns=(1, 1))  # written anew, of the same size
    others.append(key())
    assert len({first, *others}) == 1 + len(others)


def test_drawn_versions_take_turns_and_are_functions_of_seed_picture_and_version(config_of):
    settings = DRAWN | {"epochs": 6}
    kept, run = fill(config_of("a", **settings))
    again, _ = fill(config_of("b", **settings, batch_size=5))  # another batch, the same draws
    plain, _ = fill(config_of("c"))

    def epoch(features, number, size=4):
        batches = features["train"].batches(size, epoch=number)
        return np.concatenate([batch["features"] for batch in batches])[:18]

    np.testing.assert_array_equal(epoch(kept, 0), epoch(kept, 2))
    np.testing.assert_allclose(epoch(kept, 1), epoch(again, 1, 5), rtol=1e-5)
    for one, other in ((epoch(kept, 0), epoch(kept, 1)), (epoch(kept, 0), epoch(plain, 0))):
        assert (np.abs(one - other).max(1) > 1e-4).mean() > 0.9  # a factor may be 1
    np.testing.assert_array_equal(rows_of(kept["val"])[0]["features"],
                                  rows_of(plain["val"])[0]["features"])  # fmt: skip


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_four_devices_keep_what_one_keeps(config_of, monkeypatch, kind):
    kept, _ = fill(config_of("one", **DRAWN))
    monkeypatch.setattr(setup, "Placement", Placement)
    four, run = fill(config_of("four", parallel=kind, **DRAWN))
    assert len(run.placement.devices) == 4
    for ours, theirs in zip(rows_of(four["train"]), rows_of(kept["train"]), strict=True):
        np.testing.assert_allclose(ours["features"], theirs["features"], rtol=1e-5)
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])


def test_bfloat16_halves_the_size_in_memory_and_in_a_file(config_of):
    sizes = {}
    for name, settings in {"32": {}, "16": {"feature_dtype": "bfloat16"}}.items():
        for where in ({}, FILE):
            kept, run = fill(config_of(name, **settings, **where))
            (batch, *_) = rows_of(kept["train"])
            sizes[name] = run.features["head"].size_bytes
            assert str(batch["features"].dtype) == {"32": "float32", "16": "bfloat16"}[name]
            assert np.isfinite(batch["features"].astype(np.float32)).all()
    assert sizes["32"] == 2 * sizes["16"] == 4 * 8 * 24  # 8 channels of 18 and 6 pictures


def test_what_is_random_or_used_once_or_switched_off_is_not_kept(config_of):
    def plans(**settings):
        return set(setup.set_up(config_of("run", **settings)).features)

    assert plans() == {"head", "head+block5"}
    assert plans(augment="flip") == plans(cache_features="off") == set()
    assert plans(head_epochs=1) == {"head+block5"}
    assert plans(head_epochs=0, unfreeze="all") == set()
    assert plans(**DRAWN) == {"head", "head+block5"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cached_views": 2}, "augmentation is off"),
        ({"cached_views": -1}, "0 or more; got -1"),
        (DRAWN | {"mixup": 0.2}, "Set --mixup 0 --cutmix 0, or leave --cached-views out"),
        (DRAWN | {"cache_features": "off"}, "leave one out"),
        ({"feature_dtype": "bfloat16", "augment": "flip"}, "Use --augment none or --cached-views"),
        ({"cache_features": "on"}, "Choices: auto, off"),
    ],
)
def test_wrong_combinations_are_refused_with_the_way_out(config_of, settings, message):
    with pytest.raises(ConfigError) as caught:
        config_of("run", **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_drawn_versions_of_a_network_that_trains_from_its_first_layer_are_refused(config_of):
    config = config_of("run", **DRAWN | {"unfreeze": "all", "head_epochs": 0})
    with pytest.raises(ConfigError, match="needs frozen layers .* got --unfreeze all"):
        setup.set_up(config)


def test_the_first_screen_says_what_is_kept_where_and_how_large(config_of, monkeypatch, capsys):
    def shown(**settings):
        loop.print_first_screen(Console(width=200), setup.set_up(config_of("run", **settings)))
        return [line for line in capsys.readouterr().out.splitlines() if "Features" in line]

    head, block5 = shown()
    assert head.split() == "Features computed once up to gap, 1 MB in memory".split()
    assert "up to block4_pool, 1 MB" in block5
    assert "in a file in the run folder" in shown(**FILE)[0]
    assert "gap, 2 drawn versions of each training picture, 1 MB" in shown(**DRAWN)[0]
    monkeypatch.setattr(feature_plan, "SPARE_BYTES", 2**62)
    assert "not kept: gap, 1 MB, more than --feature-cache-mb" in shown(**FILE)[0]
    with pytest.raises(ConfigError, match="Raise --feature-cache-mb, make room on the disk, use"):
        shown(**FILE, **DRAWN)
    train(config_of("run", **HEAD, **FILE))  # without them it goes on as it would


def test_another_run_s_file_is_left_alone(config_of, tmp_path):
    other = tmp_path / "run" / "features" / "other.npy"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of another run")
    with pytest.raises(ConfigError, match="holds files but no run"):
        train(config_of("run", **FILE))
    fill(config_of("run2", **FILE))
    assert other.read_bytes() == b"of another run"
