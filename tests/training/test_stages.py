"""Stages: what each unfreezes, for how long, and which texts are refused."""

import pytest

from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.training.config import Config
from vggjax.training.freezing import plan_stages
from vggjax.training.recipes import make_config


def plan(*stages, **settings):
    planned = plan_stages(Config(stages=stages, **settings))
    return [(stage.name, stage.first_epoch, stage.epochs) for stage in planned]


def test_stages_add_to_what_the_ones_before_unfroze():
    assert plan("head:5", "block5:20", "block4:10") == [
        ("head", 0, 5),
        ("head+block5", 5, 20),
        ("head+block5+block4", 25, 10),
    ]
    config = Config(stages=("head:5", "block5:20", "block4:10"))
    assert plan_stages(config)[2].unfreeze == config.unfrozen == ("block5", "block4")
    assert config.num_epochs == 35


def test_a_stage_may_name_several_layers_a_pattern_or_all():
    assert plan("block5_conv3+block4:1", "all:2") == [
        ("head+block5_conv3+block4", 0, 1),
        ("head+all", 1, 2),
    ]
    assert plan("block5_conv?:3") == [("head+block5_conv?", 0, 3)]


def test_unfreeze_with_head_epochs_is_the_same_as_two_stages():
    config = Config(unfreeze="block5", epochs=9, head_epochs=3)
    assert plan_stages(config) == plan_stages(Config(stages=("head:3", "block5:6")))


def test_a_run_with_a_trained_head_has_no_stage_for_the_head():
    names = [stage.name for stage in plan_stages(Config(unfreeze="block5", start_from="run"))]
    assert names == ["head+block5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": ("hed:5",)}, "Unknown layer in `stages` 'hed'. Did you mean 'head'?"),
        ({"stages": ("head:5", "blok5:2")}, "Did you mean 'block5'?"),
        ({"stages": ("none:5",)}, "Unknown layer in `stages` 'none'"),
        ({"stages": ("head:five",)}, "epochs a whole number, as in head:5"),
        ({"stages": ("head:2.5",)}, "got 'head:2.5'"),
        ({"stages": ("head",)}, "LAYERS:EPOCHS"),
        ({"stages": ("block5+:3",)}, "LAYERS:EPOCHS"),
        ({"stages": ("head:0",)}, "at least one epoch; got `stages` head:0"),
        ({"stages": ("head:2", "head:2")}, "head:2 in `stages` unfreezes nothing new after head"),
        (
            {"stages": ("all:2", "block5:2")},
            "block5:2 in `stages` unfreezes nothing new after head+all",
        ),
        ({"stages": ("block5:2", "block5_conv1:2")}, "nothing new after head+block5"),
        ({"stages": ("head:2",), "unfreeze": "block5"}, "leave `unfreeze` block5 out"),
        ({"stages": ("head:2",), "epochs": 2}, "leave `epochs` 2 out"),
        ({"stages": ("block5:2",), "head_epochs": 1}, "leave `head_epochs` 1 out"),
        ({"stages": ("head:2",), "layer_decay": 0.5}, "left out if `stages` unfreeze nothing"),
        ({"layer_decay": 0.5}, "`layer_decay` must be left out if `unfreeze` is none"),
        (
            {"layer_decay": 1.5, "unfreeze": "all"},
            "`layer_decay` must be above 0 and at most 1; got 1.5",
        ),
        ({"start_from": "run", "weights": "a.h5"}, "leave `weights` a.h5 out"),
        ({"start_from": "run", "cross_validate": 3}, "leave one of the two out"),
    ],
)
def test_invalid_stages_and_rates_are_refused_with_the_fix(settings, message):
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_epochs_given_explicitly_are_the_same_run():
    assert Config(epochs=6).differences(Config()) == {}
    assert Config(epochs=7).differences(Config()) == {"epochs": (7, None)}


def test_stages_replace_a_recipe_s_epochs_and_unfreeze_its_stages(monkeypatch, capsys):
    config = make_config("finetune", dataset="photos", stages=("head:2", "block5:3"))
    assert (config.num_epochs, config.unfrozen) == (5, ("block5",))
    config = make_config("cifar10-finetune", unfreeze=("block5",))
    assert (config.stages, config.num_epochs, config.layer_decay) == ((), 6, 0.65)
    with pytest.raises(ConfigError, match="leave `epochs` 3 out"):
        make_config("cifar10-finetune", epochs=3)

    def refuse(config):
        raise ConfigError(f"{config.stages} {config.unfreeze} {config.epochs}")

    monkeypatch.setattr("vggjax.api.fit", refuse)
    assert main("train --dataset digits --stages head:1 all:1".split()) == 2
    assert "('head:1', 'all:1') ('none',) None" in capsys.readouterr().err
    assert main("train --stages head:1 --unfreeze block5".split()) == 2
    assert "leave --unfreeze block5 out" in capsys.readouterr().err
