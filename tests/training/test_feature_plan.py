"""Which layers' outputs are cached, where they are kept, and what is refused."""

import pytest
from rich.console import Console
from support.cached_runs import AUGMENTED, FILE, HEAD, QuietConsole, make_config_of

from vggjax.errors import ConfigError
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.cache import plan
from vggjax.training.cache.features import cached_features
from vggjax.training.cache.plan import find_cut
from vggjax.training.console import print_run_summary
from vggjax.training.freezing import label_layers
from vggjax.training.prepare import prepare_run
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

    assert plans() == {"head", "head+block5"}
    assert plans(augment="flip") == plans(cache_features="off") == set()
    assert plans(head_epochs=1) == {"head+block5"}
    assert plans(head_epochs=0, unfreeze="all") == set()
    assert plans(**AUGMENTED) == {"head", "head+block5"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cached_views": 2}, "augmentation is off"),
        ({"cached_views": -1}, "at least 0; got -1"),
        (AUGMENTED | {"mixup": 0.2}, "or leave `cached_views` out"),
        (AUGMENTED | {"cache_features": "off"}, "leave one out"),
        ({"feature_dtype": "bfloat16", "augment": "flip"}, "`cached_views`"),
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
    assert "in a file in the run folder" in features(**FILE)[0]
    assert "gap, 2 augmented views of each training image, 1 MB" in features(**AUGMENTED)[0]
    monkeypatch.setattr(plan, "SPARE_BYTES", 2**62)  # no disk has as much
    assert "not cached: gap, 1 MB exceeds `feature_cache_mb` and the" in features(**FILE)[0]
    with pytest.raises(ConfigError, match="Raise `feature_cache_mb`, make room on the disk, set"):
        features(**FILE, **AUGMENTED)
    run = prepare_run(config_of("run", **HEAD, **FILE))
    with cached_features(run, run.stages[0], QuietConsole(), Stop()) as (same, cut):
        assert (same, cut) == (run, None)  # it trains on the images
