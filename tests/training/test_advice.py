"""What a collapsed run's user is told: causes that apply, and flags that the command line takes."""

import shlex

import pytest

from vggjax.cli.parsing import parse
from vggjax.training.collapse.detector import diagnose
from vggjax.training.config import Config
from vggjax.training.freezing import plan_stages


def advice_for(*, stage=-1, factor=1.0, finite=True, **settings):
    config = Config(**settings)
    return diagnose(config, plan_stages(config)[stage], is_finite=finite, factor=factor)


def test_all_unfrozen_at_once_at_a_high_rate_is_told_to_train_the_head_first():
    causes, advice = advice_for(
        unfreeze=("all",),
        head_epochs=0,
        epochs=5,
        learning_rate=1e-2,
        backbone_learning_rate=1e-2,
        warmup_epochs=0,
    )
    assert advice == (
        "--learning-rate 0.001",
        "--stages head:1 block5:2 all:2",
        "--backbone-learning-rate 1e-05",
        "--warmup-epochs 1",
        "--clip-norm 1",
    )
    assert causes[0] == "the rate 0.01 is high for adam"
    assert "unfrozen at once" in causes[1]


def test_pixels_that_the_weights_do_not_know_come_first():
    causes, advice = advice_for(preprocess="unit", weights="imagenet")
    assert advice[0] == "--preprocess auto" and "unit" in causes[0]
    assert "--preprocess auto" not in advice_for(preprocess="unit", weights="none")[1]


def test_a_rate_that_is_too_low_is_raised_but_not_where_the_loss_is_not_finite():
    assert "--learning-rate 1e-06" in advice_for(learning_rate=1e-7)[1]
    assert "--learning-rate 1e-08" in advice_for(learning_rate=1e-7, finite=False)[1]
    assert "--learning-rate 0.001" in advice_for(learning_rate=1e-4, optimizer="sgd")[1]


def test_the_present_rate_counts_after_a_recovery():
    assert "--learning-rate 0.0001" in advice_for(learning_rate=1e-2, factor=0.1)[1]


def test_nothing_is_advised_that_the_run_has_already():
    _, advice = advice_for(
        unfreeze=("block5",), head_epochs=2, clip_norm=1.0, warmup_epochs=1.0, learning_rate=1e-3
    )
    assert advice == ("--learning-rate 0.0001",)


@pytest.mark.parametrize(
    "settings",
    [
        dict(unfreeze=("all",), head_epochs=0, epochs=1, warmup_epochs=0),
        dict(unfreeze=("block4", "block5"), head_epochs=0, epochs=9, preprocess="torch"),
        dict(stages=("block5:3", "all:2"), learning_rate=3e-2),
        dict(weights="none", unfreeze=("none",)),
        dict(weights="none", unfreeze=("all",), model="vgg11", learning_rate=1e-9),
    ],
)
def test_each_piece_of_advice_is_a_flag_that_the_command_line_takes(settings):
    _, advice = advice_for(stage=0, **settings)
    assert advice
    for words in advice:
        parse(Config, shlex.split(words), "train", default=Config(dataset="x"))
