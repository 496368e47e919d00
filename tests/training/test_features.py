"""Cached features train the same network without its frozen layers, and are never stale."""

import dataclasses

import jax
import numpy as np
import pytest
from support.cached_runs import AUGMENTED, FILE, FLIPS, HEAD, fill, make_config_of, rows_of
from support.steps import make_batch, make_step
from support.training_runs import (
    assert_same_weights,
    interrupt_at,
    log_without_times,
    weights_of,
)

from vggjax.data.augment.augment import augment
from vggjax.data.images.preprocess import preprocess
from vggjax.data.loader import Process
from vggjax.evaluation.evaluate import predict_split
from vggjax.training import prepare
from vggjax.training.cache.exchange import own_positions
from vggjax.training.cache.features import CachedFeatures
from vggjax.training.run_dir.log import read_log
from vggjax.training.signals import Interrupted
from vggjax.training.step import _example_keys, make_feature_step
from vggjax.training.trainer import train

SGD = {"optimizer": "sgd"}
"""Adam divides small gradients by their size, and so makes their rounding as large as a step."""


@pytest.fixture
def config_of(tmp_path):
    return make_config_of(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(HEAD | FILE, id="head", marks=pytest.mark.slow),
        pytest.param({}, id="block5", marks=pytest.mark.slow),
        pytest.param(FILE, id="block5_file", marks=pytest.mark.slow),
        pytest.param(FLIPS | {"epochs": 6}, id="flips", marks=pytest.mark.slow),
        pytest.param(  # short epochs, which begin within a pass, of stacked steps
            HEAD | {"augment": "flip", "epochs": 4, "epoch_images": 13, "ema": 0.9}, id="flip"
        ),
    ],
)
def test_a_run_with_cached_features_learns_what_one_without_learns(config_of, tmp_path, settings):
    train(config_of("uncached", **SGD | settings, cache_features="off"))
    cached_run = config_of("cached", **SGD | settings)
    assert prepare.prepare_run(cached_run).feature_plans
    train(cached_run)
    cached, expected = weights_of(tmp_path / "cached"), weights_of(tmp_path / "uncached")
    for name, array in cached.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for one, other in zip(
        read_log(tmp_path / "cached"), read_log(tmp_path / "uncached"), strict=True
    ):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
    assert not (tmp_path / "cached" / "features").exists()


# 18 images make 9 steps of 2: the head learns until step 18, two steps at a time.
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        pytest.param(HEAD | FILE | {"augment": "flip", "epochs": 3}, (11, 27), id="stacked_flip"),
        pytest.param({"augment": "flip"} | FILE, (13, 23), id="flip", marks=pytest.mark.slow),
        pytest.param({}, (13, 23), id="memory", marks=pytest.mark.slow),
        pytest.param(AUGMENTED | FILE, (13, 23), id="views", marks=pytest.mark.slow),
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
        folder = tmp_path / "broken" / "features"
        assert folder.exists() == ("feature_cache_mb" in settings)
    train(broken)
    assert not folder.exists()
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert log_without_times(tmp_path / "whole") == log_without_times(tmp_path / "broken")


def test_features_come_in_the_batches_of_their_images(config_of):
    config = config_of("run", augment="flip", seed=7)
    cached, run = fill(config)
    order = dict(seed=3, epoch=1, shuffle=True)
    prefix = jax.jit(lambda x: run.model(preprocess(x, config.preprocessing.mode), until="gap"))
    whole = list(run.loaders["train"].batches(4, **order))
    for step, batch in enumerate(whole, start=5):  # the second pass, each row flipped or not
        keys = _example_keys(7, step, 4, None)[:, 0]
        batch["images"] = np.asarray(augment(keys, batch["images"], config.augmentation))
    batches = rows_of(cached["train"], **order, start=1)
    for batch, images in zip(batches, whole[1:], strict=True):
        for name in ("label", "mask", "index"):
            np.testing.assert_array_equal(batch[name], images[name])
        expected = np.asarray(prefix(images["images"]))
        is_real = batch["mask"] > 0
        np.testing.assert_allclose(
            batch["features"][is_real], expected[is_real], rtol=1e-4, atol=1e-4
        )
        assert not batch["features"][~is_real].any()


def test_two_processes_with_a_part_of_the_features_each_make_the_same_batches(config_of):
    cached, _ = fill(config_of("run", augment="flip", seed=7))
    order = dict(seed=3, epoch=1, shuffle=True)
    expected, train_features = rows_of(cached["train"], **order), cached["train"]
    pair = [Process(index, 2) for index in range(2)]
    parts = []
    for process in pair:
        own = own_positions(len(train_features), 4, process)
        views = {view: rows[own] for view, rows in train_features._views.items()}
        part = CachedFeatures(
            train_features._loader, views, train_features._masked, train_features._choose
        )
        parts.append(rows_of(part, **order, process=process))
    for batch, both in zip(expected, zip(*parts, strict=True), strict=True):
        for process, own in zip(pair, both, strict=True):
            # as all_to_all: from each process what it sends to this one
            received = np.concatenate([other["sent"][0, process.index] for other in both])
            is_real = own["mask"] > 0
            rows = slice(2 * process.index, 2 * process.index + 2)
            np.testing.assert_array_equal(
                received[own["take"]][is_real], batch["features"][rows][is_real]
            )


def test_images_are_decoded_once(config_of, monkeypatch):
    read, open_source = [], prepare.open_source

    def open_counted(*args, **kwargs):
        source = open_source(*args, **kwargs)
        counted = lambda i: read.append(i) or source.read(i)  # noqa: E731
        return dataclasses.replace(source, read=counted, read_as=None)

    monkeypatch.setattr(prepare, "open_source", open_counted)
    result = train(config_of("run", **FILE, cache_mb=0))  # for both stages
    assert not (result.workdir / "features").exists()
    assert sorted(read) == sorted(np.concatenate(list(result.splits.values())))


def test_val_and_test_are_predicted_from_the_features_as_from_the_images(config_of):
    for name, settings in (("both", FILE | {"epochs": 3, "head_epochs": 2}), ("head", HEAD)):
        config = config_of(name, **settings, batch_size=5, max_unreadable=0.2)
        result = train(config)
        assert set(result.predictions) == {"val", "test"}
        from_images = dataclasses.replace(result, predictions={})
        for split, (cached, unreadable) in result.predictions.items():
            expected, _ = predict_split(from_images, split)
            assert cached.index.tolist() == expected.index.tolist()
            assert cached.labels.tolist() == expected.labels.tolist()
            np.testing.assert_allclose(cached.probs, expected.probs, atol=1e-5)
            assert predict_split(result, split)[0] is cached and not unreadable


def test_an_unreadable_test_image_is_named_whatever_kept_its_features(config_of, tmp_path):
    config = config_of("run", **HEAD, max_unreadable=0)
    run = prepare.prepare_run(config)
    bad = run.splits["test"][2]
    (tmp_path / "images" / run.source.ids[bad]).write_bytes(b"no image")
    result = train(config)
    predictions, unreadable = predict_split(result, "test")
    assert unreadable == {bad: "not an image"} and bad not in predictions.index
    assert len(predictions.index) == 5 and not result.left_out


@pytest.mark.parametrize(
    "where", [pytest.param({}, id="memory", marks=pytest.mark.slow), pytest.param(FILE, id="file")]
)
def test_unreadable_images_have_mask_0_and_are_named_even_after_a_kill(
    config_of, tmp_path, monkeypatch, where
):
    settings = dict(**HEAD, cache_mb=0, max_unreadable=0.2, **where)
    config = config_of("run", **settings)
    run = prepare.prepare_run(config)
    bad = run.source.ids[run.splits["train"][0]]
    (tmp_path / "images" / bad).write_bytes(b"no image")
    cached, _ = fill(config_of("other", **settings))
    masks = np.concatenate([batch["mask"] for batch in rows_of(cached["train"])])
    assert masks.tolist() == [0] + 17 * [1] + 2 * [0]
    with monkeypatch.context() as patched:
        interrupt_at(patched, 8)
        with pytest.raises(Interrupted):
            train(config)
    assert train(config).info.left_out == {bad: "not an image"}


def test_views_take_turns_and_are_functions_of_seed_image_and_number(config_of):
    settings = AUGMENTED | {"epochs": 6}
    cached, _ = fill(config_of("a", **settings))
    again, _ = fill(config_of("b", **settings, batch_size=5))  # another batch, the same draws
    plain, _ = fill(config_of("c"))

    def epoch(features, number, size=4):
        batches = features["train"].batches(size, epoch=number)
        return np.concatenate([batch["features"] for batch in batches])[:18]

    np.testing.assert_array_equal(epoch(cached, 0), epoch(cached, 2))
    np.testing.assert_allclose(epoch(cached, 1), epoch(again, 1, 5), rtol=1e-4, atol=1e-4)
    for one, other in ((epoch(cached, 0), epoch(cached, 1)), (epoch(cached, 0), epoch(plain, 0))):
        assert (np.abs(one - other).max(1) > 1e-3).mean() > 0.9  # a drawn factor may be near 1
    np.testing.assert_array_equal(
        rows_of(cached["val"])[0]["features"], rows_of(plain["val"])[0]["features"]
    )


@pytest.mark.parametrize("kind", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_four_devices_cache_what_one_caches(config_of, kind):
    one, _ = fill(config_of("one", **AUGMENTED))
    four, run = fill(config_of("four", parallel=kind, devices=4, **AUGMENTED))
    assert len(run.placement.devices) == 4
    for batch, expected in zip(rows_of(four["train"]), rows_of(one["train"]), strict=True):
        np.testing.assert_allclose(batch["features"], expected["features"], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(batch["mask"], expected["mask"])


@pytest.mark.parametrize(
    ("unfreeze", "cut"),
    [pytest.param("none", "gap", marks=pytest.mark.slow), ("block5", "block4_pool")],
)
def test_steps_on_the_features_of_their_own_batch_learn_the_same(unfreeze, cut):
    settings = dict(unfreeze=unfreeze, optimizer="sgd", learning_rate=1e-2)
    whole, rest = make_step(**settings), make_step(**settings, after=cut)
    prefix = make_feature_step(whole.model, cut, placement=whole.placement, mode="torch")
    state, state_on_features = whole.state, rest.state
    for seed in range(3):
        batch = make_batch(seed=seed)
        model_state = (state_on_features.params, state_on_features.batch_stats, np.int32(0))
        features = prefix(model_state, whole.placement.put_batch(batch))["features"]
        state, metrics = whole(state, batch)
        del batch["images"]
        state_on_features, same = rest(
            state_on_features, batch | {"features": np.asarray(features)}
        )
    one, other = jax.tree.leaves((state, metrics)), jax.tree.leaves((state_on_features, same))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
