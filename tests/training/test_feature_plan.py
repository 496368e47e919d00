"""Which layers' outputs are cached, where they are kept, and what is refused."""

import shutil

import numpy as np
import pytest
from rich.console import Console
from support.cached_runs import AUGMENTED, FILE, FLIPS, HEAD, QuietConsole, make_config_of

from vggjax.errors import ConfigError
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.cache import plan
from vggjax.training.cache.features import FeatureCache
from vggjax.training.cache.plan import find_cut
from vggjax.training.console import print_run_summary
from vggjax.training.freezing import label_layers
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.folder import make_workdir
from vggjax.training.signals import Stop


@pytest.fixture
def config_of(tmp_path):
    return make_config_of(tmp_path)


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
    arch = Arch("cut", (1, 1, 1, 1, 2), (4, 4, 4, 4, 4), batch_norm=True)
    model = VGG(arch, head=Head.parse(head), image_size=64)
    assert find_cut(model, label_layers(model, (unfreeze,))) == cut


def test_what_is_random_or_used_once_or_switched_off_is_not_cached(config_of):
    def plans(**settings):
        return set(prepare_run(config_of("run", **settings)).feature_plans)

    both = {"head", "head+block5"}
    assert plans() == plans(**AUGMENTED) == plans(augment="flip") == both
    assert plans(cache_features="off") == plans(augment="crop-flip") == set()
    assert plans(augment="flip", random_erasing=0.1) == set()
    assert plans(head_epochs=0, unfreeze="all") == set()
    # As many passes as views, of both stages together, and one more.
    assert plans(**HEAD | {"epochs": 1}) == set()
    assert plans(epochs=2, head_epochs=1) == both
    assert plans(epochs=2, head_epochs=1, augment="flip") == set()
    assert plans(epochs=3, head_epochs=1, augment="flip") == both
    assert plans(**FLIPS) == set()
    assert plans(**FLIPS, epochs=5) == both


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ({}, (0,)),
        ({"augment": "flip"}, (0, 1)),
        ({"vertical_flip": True}, (0, 2)),
        (FLIPS, (0, 1, 2, 3)),
        (AUGMENTED, (0, 1)),
        (AUGMENTED | {"cached_views": 9}, (0, 1, 2, 3, 4)),  # a turn for each of 5 passes
    ],
)
def test_the_size_counts_the_views_of_the_training_images(config_of, settings, views):
    plan = prepare_run(config_of("run", **settings, epochs=5)).feature_plans["head+block5"]
    assert plan.views == views
    assert plan.size_bytes == (18 * len(views) + 12) * 4 * 2 * 2 * 8  # 2 x 2 px, 8 channels


@pytest.mark.parametrize(
    "settings",
    [
        {"unfreeze": "none", "head_epochs": None, "epochs": None},
        {"unfreeze": "block5", "head_epochs": 1, "epochs": 2},
    ],
)
def test_a_solved_head_has_every_cached_view(config_of, settings):
    solved = {"head": "gap-classes", "head_solver": "lbfgs"}
    plans = prepare_run(config_of("run", **AUGMENTED | settings | solved | {"cached_views": 5}))
    assert {plan.views for plan in plans.feature_plans.values()} == {(0, 1, 2, 3, 4)}


def test_the_stages_share_the_memory_and_a_cut_is_kept_once(config_of):
    def where(**settings):
        plans = prepare_run(config_of("run", image_size=512, **settings)).feature_plans
        return [plan.where for plan in plans.values()]

    # 24 images: gap 768 bytes, block4_pool 768 KiB; 30 images: block3_pool 3.75 MiB
    settings = {"unfreeze": "none", "head_epochs": None, "epochs": None}
    three = settings | {"stages": ("head:2", "block5:2", "block4:2")}
    assert where(**three) == ["memory", "memory", "memory"]
    assert where(**three, feature_cache_mb=4) == ["memory", "file", "memory"]
    assert where(**three, feature_cache_mb=2) == ["memory", "memory", "file"]
    same = settings | {"stages": ("block4:2", "block5:2")}
    run = prepare_run(config_of("same", **same))
    first, second = run.feature_plans.values()
    assert first is second and first.cut == "block3_pool"
    cache = FeatureCache(run, QuietConsole(), Stop())
    with cache.of(run.stages[0]) as (one, _):
        pass
    with cache.of(run.stages[1]) as (other, _):
        assert one.loaders == other.loaders
    cache.discard()
    assert not cache._kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cached_views": 2}, "augmentation is off"),
        ({"cached_views": -1}, "at least 0; got -1"),
        (AUGMENTED | {"mixup": 0.2}, "or leave `cached_views` out"),
        (AUGMENTED | {"cache_features": "off"}, "leave one out"),
        ({"feature_dtype": "bfloat16", "augment": "crop-flip"}, "`cached_views`"),
        ({"cache_features": "on"}, "auto, off"),
    ],
)
def test_wrong_combinations_are_refused_with_the_way_out(config_of, settings, message):
    with pytest.raises(ConfigError) as caught:
        config_of("run", **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_cached_views_of_a_network_that_trains_from_its_first_layer_are_refused(config_of):
    config = config_of("run", **AUGMENTED | {"unfreeze": "all", "head_epochs": 0})
    with pytest.raises(ConfigError, match="needs frozen layers .* got `unfreeze` all"):
        prepare_run(config)


def test_the_summary_states_what_is_cached_where_and_how_large(config_of, monkeypatch, capsys):
    def features(**settings):
        print_run_summary(Console(width=200), prepare_run(config_of("run", **settings)))
        return [line for line in capsys.readouterr().out.splitlines() if "Features" in line]

    head, block5 = features()
    assert head.split() == "Features cached up to gap, 1 MB in memory".split()
    assert "up to block4_pool, 1 MB" in block5
    assert "in files in the run folder" in features(**FILE)[0]
    assert "gap, 2 augmented views of each training image, 1 MB" in features(**AUGMENTED)[0]
    assert "gap, each training image and its mirror image, 1 MB" in features(augment="flip")[0]
    assert "gap, the 4 flips of each training image" in features(**FLIPS, epochs=5)[0]
    (note,) = features(augment="crop-flip")
    assert "(crop 0.08-1, flip, fill nearest) draws anew at every step, so the frozen" in note
    assert "for each image of all 4 epochs. With --cached-views 2 they run 2 times" in note
    assert "--cached-views" not in features(augment="crop-flip", **HEAD)[0]  # no fewer times
    assert "--cached-views" not in features(augment="flip", mixup=0.2)[0]  # refused
    assert not features(augment="crop-flip", head_epochs=0, unfreeze="all")
    monkeypatch.setattr(plan, "SPARE_BYTES", 2**62)  # no disk has as much
    assert "at every step: gap, 1 MB exceeds --feature-cache-mb and half" in features(**FILE)[0]
    with pytest.raises(
        ConfigError, match="Raise `feature_cache_mb`, make room on the disk or lower"
    ):
        features(**FILE, **AUGMENTED)
    run = prepare_run(config_of("run", **HEAD, **FILE))
    with FeatureCache(run, QuietConsole(), Stop()).of(run.stages[0]) as (same, cut):
        assert (same, cut) == (run, None)  # it trains on the images


def test_features_leave_half_of_the_disk_and_are_rounded_before_they_are_left_out(
    config_of, tmp_path, monkeypatch
):
    def plans(*, free, **settings):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        monkeypatch.setattr(plan, "SPARE_BYTES", 0)
        run = prepare_run(config_of("run", **HEAD, **FILE, **settings))
        return run.feature_plans["head"]

    exact = plans(free=10**9)
    assert (exact.where, exact.dtype, exact.holds_test) == ("file", "float32", True)
    size = exact.size_bytes
    assert plans(free=2 * size) == exact
    rounded = plans(free=2 * size - 1)
    assert (rounded.where, rounded.dtype, rounded.holds_test) == ("file", "bfloat16", False)
    assert "as bfloat16 because float32 exceeds" in str(rounded)
    assert plans(free=2 * rounded.size_bytes - 1).where == "nowhere"
    with pytest.raises(ConfigError, match="set `feature_dtype` to bfloat16"):
        plans(free=size - 1, feature_dtype="float32")
    # A run goes on with the features that it began with, whatever the disk has now.
    run = prepare_run(config_of("run", **HEAD, **FILE))
    make_workdir(run.workdir, run.config, run.source, run.splits)
    (tmp_path / "run" / "features").mkdir()
    with (tmp_path / "run" / "features" / "one.npy").open("wb") as file:
        np.lib.format.write_array(file, np.zeros((2, 3), np.uint16), version=(2, 0))
    assert plans(free=10**9).dtype == "bfloat16"
