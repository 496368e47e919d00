"""The kept features: the same training without the frozen layers, and never stale."""

import dataclasses

import jax
import numpy as np
import pytest
from support.kept_run import DRAWN, FILE, HEAD, fill, interrupt_at, make_config_of, rows_of
from support.steps import make_batch
from support.training_runs import assert_same_weights, log_without_times, weights_of

from vggjax.data.images.preprocess import preprocess
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training import prepare
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.run_dir.log import read_log
from vggjax.training.signals import Interrupted
from vggjax.training.step import make_feature_step, make_state, make_train_step
from vggjax.training.trainer import train


@pytest.fixture
def config_of(tmp_path, monkeypatch, tiny_arch):
    """Makes configs of a run that keeps features in both of its stages, two epochs each."""
    return make_config_of(tmp_path, monkeypatch, tiny_arch)


def test_a_run_with_kept_features_learns_what_one_without_learns(config_of, tmp_path):
    train(config_of("off", cache_features="off"))
    train(config_of("kept"))
    train(config_of("file", **FILE))
    ours, theirs = weights_of(tmp_path / "kept"), weights_of(tmp_path / "off")
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-6, err_msg=name)
    for one, other in zip(read_log(tmp_path / "kept"), read_log(tmp_path / "off"), strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=2e-6)  # of float32
    assert_same_weights(tmp_path / "kept", tmp_path / "file")
    assert not (tmp_path / "file" / "features").exists()


# 18 images make 9 steps of 2: the head learns until step 18, in chunks of two steps.
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


def test_features_come_in_the_batches_of_their_images(config_of):
    config = config_of("run")
    kept, run = fill(config)
    order = dict(seed=3, epoch=1, shuffle=True)
    model, mode = run.model, config.preprocessing.mode
    whole = list(run.loaders["train"].batches(4, **order))
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


def test_images_are_decoded_once(config_of, monkeypatch):
    read, opened = [], prepare.open_source

    def open_source(*args, **kwargs):
        source = opened(*args, **kwargs)
        return dataclasses.replace(source, read=lambda i: read.append(i) or source.read(i))

    monkeypatch.setattr(prepare, "open_source", open_source)
    config = config_of("run", **HEAD, cache_mb=0)
    train(config)
    splits = prepare.prepare_run(config).splits
    assert sorted(read) == sorted([*splits["train"], *splits["val"]])


@pytest.mark.parametrize("where", [{}, FILE], ids=["memory", "file"])
def test_unreadable_images_keep_mask_0_and_are_named_also_after_a_kill(
    config_of, tmp_path, monkeypatch, where
):
    config = config_of("run", **HEAD, cache_mb=0, max_unreadable=0.2, **where)
    run = prepare.prepare_run(config)
    bad = run.source.ids[run.splits["train"][0]]
    (tmp_path / "images" / bad).write_bytes(b"no image")
    kept, _ = fill(config_of("other", **HEAD, cache_mb=0, max_unreadable=0.2, **where))
    masks = np.concatenate([batch["mask"] for batch in rows_of(kept["train"])])
    assert masks.tolist() == [0] + 17 * [1] + 2 * [0]
    with monkeypatch.context() as patched:
        interrupt_at(patched, 8)
        with pytest.raises(Interrupted):
            train(config)
    assert train(config).info.left_out == {bad: "not an image"}


def test_drawn_versions_take_turns_and_are_functions_of_seed_image_and_version(config_of):
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
    four, run = fill(config_of("four", parallel=kind, devices=None, **DRAWN))
    assert len(run.placement.devices) == 4
    for ours, theirs in zip(rows_of(four["train"]), rows_of(kept["train"]), strict=True):
        np.testing.assert_allclose(ours["features"], theirs["features"], rtol=1e-5)
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])


@pytest.mark.parametrize(("unfreeze", "cut"), [("none", "gap"), ("block5", "block4_pool")])
def test_steps_on_the_features_of_their_own_batch_are_the_same_to_the_bit(tiny_arch, unfreeze, cut):
    model = VGG(tiny_arch, head=Head.parse("gap-8-0.5-3"), image_size=32)
    config = Config(weights="none", unfreeze=unfreeze, augment="none", learning_rate=1e-2)
    labels = label_layers(model, config.unfreeze)
    tx = make_optimizer(config, labels, make_schedules(config, plan_stages(config)[-1], 5))
    options = dict(placement=Placement(num_devices=1), mode="caffe")
    whole = make_train_step(model, tx, labels, **options)
    rest = make_train_step(model, tx, labels, **options, after=cut)
    prefix = make_feature_step(model, cut, **options)
    put = options["placement"].put_state
    one, other = put(make_state(model, tx, labels)), put(make_state(model, tx, labels))
    for seed in range(4):
        batch = make_batch(4, seed=seed) | {"index": np.arange(4)}
        kept = prefix((other.params, other.batch_stats, np.int32(0)), batch)
        one, metrics = whole(one, batch)
        del batch["images"]
        other, same = rest(other, batch | {"features": kept["features"]})
    for a, b in zip(jax.tree.leaves((one, metrics)), jax.tree.leaves((other, same)), strict=True):
        np.testing.assert_array_equal(a, b)
