"""Runs that collapse are warned of, stopped, or recover; a healthy one is left alone.

The classes differ in color, which a head on random features learns to 100 % within an epoch of 36
steps, at either rate. A collapse is forced by training on weights of 0 while the rates are not
lowered (see `spoil_weights`): the loss is then ln 3, however a training happens to go. An epoch has
432 images, enough for the detector to know an accuracy to be near chance.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cached_runs import make_config_of, spoil_weights
from support.steps import make_step
from support.training_runs import (
    assert_same_log,
    assert_same_weights,
    interrupt_at,
    replace_metric,
    weights_of,
)

from vggjax.cli.main import main
from vggjax.errors import VggjaxError
from vggjax.evaluation.evaluate import predict_split
from vggjax.training import stage_loop
from vggjax.training.collapse.recovery import resume_from_eval_params
from vggjax.training.run_dir.log import read_log
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train

SETTINGS = dict(
    model="narrow", weights="none", unfreeze="none", head_epochs=None, head="gap-64-classes",
    epochs=2, batch_size=12, epoch_images=12 * 36, log_every_steps=1, warmup_epochs=0,
    learning_rate=0.03, schedule="constant",
)  # fmt: skip


@pytest.fixture
def config_of(tmp_path):
    """Three classes of 40 images: 72 to train, 24 to validate."""
    make_config = make_config_of(tmp_path, each=40)
    return lambda name, **settings: make_config(name, **SETTINGS | settings)


def lines_of(workdir, kind):
    return [line for line in read_log(workdir) if line["kind"] == kind]


def assert_learned(workdir):
    """Assert a last epoch far from chance, a third: even 16 of 24 is 3 deviations above it."""
    last = lines_of(workdir, "epoch")[-1]
    assert math.isfinite(last["val/loss"]) and last["val/accuracy"] >= 16 / 24


def test_a_collapse_is_reported_once_with_causes_and_advice_and_the_run_goes_on(
    config_of, tmp_path, monkeypatch, capsys
):
    spoil_weights(monkeypatch, step=1, above=0)
    train(config_of("run"))
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("Training collapse detected") == 1
    assert "Training collapse detected in epoch 1 (head): loss 1.099 (chance: ln 3 = " in output
    assert "Possible causes: the frozen layers are random (`weights` none); the lear" in output
    advice = "Try `unfreeze` all, or `learning_rate` 0.003, or `warmup_epochs` 1, or `clip_norm` 1"
    assert f"{advice}, in another `workdir`; or, in this one, `on_collapse` recover." in output
    (line,) = lines_of(tmp_path / "run", "collapse")
    assert (line["step"], line["epoch"], line["stage"]) == (36, 1, "head")
    assert (line["action"], line["advice"]) == ("warned", advice)
    assert (tmp_path / "run" / "model.json").exists()


def test_stop_ends_the_command_with_flags_to_try_and_the_same_folder_can_recover(
    config_of, tmp_path, monkeypatch, capsys
):
    spoil_weights(monkeypatch, step=1, above=0.5)
    config = config_of("run", on_collapse="recover")
    flags = {"dataset": config.dataset, "split": config.split, "augment": "none",
             "duplicates": "ignore", "image_size": 32, "devices": 1, "workdir": config.workdir,
             "on_collapse": "stop"} | SETTINGS  # fmt: skip
    line = ["train"]
    for name, value in flags.items():
        line += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.startswith("vggjax: error: Training collapsed in epoch 1 (head): loss 1.099 ")
    assert "Try --unfreeze all, or --learning-rate 0.003, or --warmup-epochs 1, or" in error
    assert error.endswith("in another --workdir; or, in this one, --on-collapse recover.\n")
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "model.json").exists()
    assert lines_of(tmp_path / "run", "collapse")[0]["action"] == "stopped"
    train(config)
    (collapse,) = lines_of(tmp_path / "run", "collapse")
    assert collapse["action"] == "went back to the start, to a tenth of the rates"
    assert_learned(tmp_path / "run")


def test_a_run_recovers_from_the_last_good_checkpoint_at_a_tenth_of_the_rates(
    config_of, tmp_path, monkeypatch, capsys
):
    """The latest checkpoint is of the collapsed network; the best one is of the first epoch."""
    spoil_weights(monkeypatch, step=37, above=0.5)
    train(config_of("run", epochs=4, on_collapse="recover", tensorboard=True))
    (collapse,) = lines_of(tmp_path / "run", "collapse")
    assert (collapse["step"], collapse["epoch"]) == (36, 2)
    assert collapse["action"] == "went back to step 36, to a tenth of the rates"
    epochs = lines_of(tmp_path / "run", "epoch")
    assert [line["step"] for line in epochs] == [36, 72, 108, 144]
    assert [line["learning_rate/head"] for line in epochs] == pytest.approx([0.03] + [0.003] * 3)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"144"}
    output = " ".join(capsys.readouterr().out.split())
    assert "with a tenth of the learning rates (head 0.003): recovery 1 of 3." in output
    assert_learned(tmp_path / "run")


def test_a_run_gives_up_after_three_recoveries(config_of, tmp_path, monkeypatch):
    spoil_weights(monkeypatch, step=1, above=0, value=math.nan)
    with pytest.raises(VggjaxError, match=r"has recovered 3 times before. Try") as caught:
        train(config_of("run", on_collapse="recover"))
    assert "`on_collapse` recover" not in str(caught.value)
    lines = lines_of(tmp_path / "run", "collapse")
    assert lines[0]["reason"].startswith("the loss is nan at step ")
    assert [line.get("recoveries") for line in lines] == [1, 2, 3, None]


def test_a_later_stage_that_collapses_restarts_from_the_best_weights_before_it(
    config_of, tmp_path, monkeypatch
):
    """Its optimizer starts anew, on features of the same frozen layers."""
    spoil_weights(monkeypatch, step=37, above=0.5)
    settings = dict(epochs=None, stages=("head:1", "block5:2"))
    train(config_of("run", **settings, on_collapse="recover"))
    (collapse,) = lines_of(tmp_path / "run", "collapse")
    assert (collapse["step"], collapse["stage"]) == (36, "head+block5")
    epochs = lines_of(tmp_path / "run", "epoch")
    assert [line["stage"] for line in epochs] == ["head"] + ["head+block5"] * 2
    assert_learned(tmp_path / "run")


LATER = dict(epochs=None, stages=("head:1", "block5:2"))


def test_a_stage_that_fails_at_every_rate_leaves_the_weights_from_before_it(
    config_of, tmp_path, monkeypatch, capsys
):
    train(config_of("head", epochs=1))
    spoil_weights(monkeypatch, step=37, above=0, value=math.nan)
    train(config_of("run", **LATER))
    assert_same_weights(tmp_path / "head", tmp_path / "run")
    lines = lines_of(tmp_path / "run", "collapse")
    assert [line["action"] for line in lines][2:] == [
        "went back to step 36, to a tenth of the rates",
        "gave up",
    ]
    assert "so it ends here, with its best weights, those of step 36." in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_absurd_rate_in_a_later_stage_costs_nothing(config_of, tmp_path):
    result = train(config_of("run", **LATER, backbone_learning_rate=1e4))
    before = lines_of(tmp_path / "run", "epoch")[0]["val/accuracy"]
    _, labels, probs = predict_split(result, "val")[0]
    assert np.mean(probs.argmax(1) == labels) >= before >= 16 / 24
    assert lines_of(tmp_path / "run", "collapse")


def test_a_stage_whose_first_epoch_is_far_worse_goes_back_to_its_start(
    config_of, tmp_path, monkeypatch, capsys
):
    """The next attempt has a tenth of the rates, and may fall a little."""
    replace_metric(monkeypatch, "val/accuracy", [22 / 24, 12 / 24, 20 / 24, 23 / 24])
    train(config_of("run", **LATER))
    (line,) = lines_of(tmp_path / "run", "collapse")
    assert line["reason"].startswith("validation accuracy 50.0%, and 91.7% before this stage. P")
    assert line["action"] == "went back to step 36, to a tenth of the rates"
    assert "Setback in epoch 2 (head+block5): validation" in " ".join(
        capsys.readouterr().out.split()
    )
    epochs = lines_of(tmp_path / "run", "epoch")
    assert [line["val/accuracy"] for line in epochs] == [22 / 24, 20 / 24, 23 / 24]
    assert [line["learning_rate/head"] for line in epochs] == pytest.approx([0.03, 3e-3, 3e-3])


def test_a_stage_begins_with_the_best_weights_so_far(config_of, tmp_path, monkeypatch):
    """Those of the first epoch here, and not of the second, which ends the stage before it."""
    starts, make_state = [], stage_loop.make_state

    def record_start(model, *args, **settings):
        starts.append(np.array(model.predictions.kernel[...]))
        return make_state(model, *args, **settings)

    monkeypatch.setattr(stage_loop, "make_state", record_start)
    kernels = replace_metric(monkeypatch, "val/accuracy", [20 / 24, 18 / 24, 19 / 24])
    train(config_of("run", **LATER | {"stages": ("head:2", "block5:1")}))
    first, second, _ = (judged for judged, _ in kernels)
    assert np.any(first != second)
    np.testing.assert_array_equal(starts[-1], first)
    np.testing.assert_array_equal(weights_of(tmp_path / "run")["predictions/kernel"], first)


@pytest.mark.slow
def test_a_run_that_recovers_and_is_killed_at_any_step_ends_with_the_same_weights_and_log(
    config_of, tmp_path, monkeypatch
):
    settings = dict(epochs=4, on_collapse="recover", ema=0.9)
    spoil_weights(monkeypatch, step=37, above=0.5)
    train(config_of("whole", **settings))
    for step in (20, 60, 100, 130):  # before the collapse, during it, and twice after it
        with monkeypatch.context() as patched:
            interrupt_at(patched, step)
            with pytest.raises(Interrupted):
                train(config_of("broken", **settings))
    train(config_of("broken", **settings))
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert_same_log(tmp_path / "whole", tmp_path / "broken")
    assert len(lines_of(tmp_path / "broken", "collapse")) == 1


def test_a_recovery_continues_from_the_averaged_weights():
    state = make_step(ema=0.9).state
    params = jax.tree.map(jnp.zeros_like, state.params)  # collapsed; the averages are not
    resumed = resume_from_eval_params(state._replace(params=params))
    expected = jax.tree.leaves(state._replace(params=params).eval_params[0])
    for leaf, average in zip(jax.tree.leaves(resumed.params), expected, strict=True):
        np.testing.assert_array_equal(leaf, average)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(resumed.params))
