"""Real runs that collapse: they are told, stopped, or go back and are cured; a healthy one is not.

The digits, at a rate of 0.03 without a warm-up, kill a narrow VGG11 in its first steps; at a tenth
of it they are learned. Where a run is to collapse later, its weights are made 0 at a step.
"""

import jax
import jax.numpy as jnp
import pytest
from support.kept_run import interrupt_at
from support.training_runs import assert_same_weights, log_without_times

from vggjax.cli.main import main
from vggjax.errors import VggjaxError
from vggjax.training import trainer
from vggjax.training.config import Config
from vggjax.training.run_dir.log import read_log
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train


def make_digits_config(workdir, **settings):
    defaults = dict(
        dataset="digits", model="narrow", weights="none", head="flatten-classes", image_size=32,
        unfreeze=("all",), augment="none", duplicates="ignore", epochs=2, batch_size=32,
        warmup_epochs=0, learning_rate=0.03, schedule="constant", devices=1,
    )  # fmt: skip
    return Config(workdir=str(workdir), **defaults | settings)


def kill_weights(monkeypatch, *, step, above):
    """Makes all weights 0 at a step of the run while the rates are not lowered below a factor."""
    make = trainer.make_train_step

    def make_train_step(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def killed(state, batch):
            state, metrics = train_step(state, batch)
            if int(state.step) == step and float(state.factor) > above:
                with jax.transfer_guard("allow"):
                    state = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
            return state, metrics

        return killed

    monkeypatch.setattr(trainer, "make_train_step", make_train_step)


def lines_of(workdir, kind):
    return [line for line in read_log(workdir) if line["kind"] == kind]


def test_a_collapse_is_told_within_its_epoch_once_with_its_cause_and_what_to_do(tmp_path, capsys):
    train(make_digits_config(tmp_path / "run", epochs=1))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("COLLAPSE") == 1
    assert "COLLAPSE in epoch 1 (head+all): loss 2.3" in said and "ln 10, accuracy " in said
    assert "What may be wrong: the rate 0.03 is high for adam; the rate is at its highest" in said
    assert "Try --learning-rate 0.003, or --warmup-epochs 1, or --clip-norm 1, in another" in said
    (line,) = lines_of(tmp_path / "run", "collapse")
    assert (line["step"], line["epoch"], line["stage"]) == (45, 1, "head+all")
    assert line["action"] == "warned" and line["advice"].startswith("Try --learning-rate 0.003")
    assert (tmp_path / "run" / "model.json").exists()  # it went on to its end


def test_a_healthy_run_is_not_disturbed(tmp_path, capsys):
    train(make_digits_config(tmp_path / "run", learning_rate=3e-3, epochs=1))
    assert lines_of(tmp_path / "run", "collapse") == []
    assert "COLLAPSE" not in capsys.readouterr().out
    assert lines_of(tmp_path / "run", "epoch")[-1]["val/accuracy"] > 0.5


@pytest.mark.slow
def test_stop_ends_the_command_with_the_advice_and_the_same_folder_can_recover(tmp_path, capsys):
    line = (
        f"train --workdir {tmp_path / 'run'} --model narrow --duplicates ignore --epochs 2 "
        "--warmup-epochs 0 --learning-rate 0.03 --schedule constant --on-collapse"
    ).split()
    assert main([*line, "stop"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vggjax: error: Training collapsed in epoch 1 (head+all): loss 2.3")
    assert said.endswith("in another --workdir; or, in this one, --on-collapse recover.\n")
    assert said.count("\n") == 1
    assert not (tmp_path / "run" / "model.json").exists()
    assert lines_of(tmp_path / "run", "collapse")[0]["action"] == "stopped"
    assert main([*line, "recover"]) == 0
    (collapse,) = lines_of(tmp_path / "run", "collapse")
    assert collapse["action"] == "went back to the start, to a tenth of the rates"
    assert lines_of(tmp_path / "run", "test")[0]["test/accuracy"] > 0.7


def test_recover_goes_back_to_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    """The latest one, of the second epoch's end, is of the collapsed network already."""
    kill_weights(monkeypatch, step=88, above=0.5)
    config = make_digits_config(
        tmp_path / "run", learning_rate=3e-3, epochs=4, on_collapse="recover", tensorboard=True
    )
    train(config)
    (collapse,) = lines_of(tmp_path / "run", "collapse")
    assert (collapse["step"], collapse["epoch"]) == (45, 3)
    assert collapse["action"] == "went back to step 45, to a tenth of the rates"
    epochs = lines_of(tmp_path / "run", "epoch")
    assert [line["step"] for line in epochs] == [45, 90, 135, 180]
    assert [line["learning_rate/head"] for line in epochs] == pytest.approx([3e-3] + [3e-4] * 3)
    assert epochs[-1]["val/accuracy"] >= epochs[0]["val/accuracy"] > 0.5
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"180"}
    assert "(head 0.0003, backbone 0.0003): recovery 1 of 3." in capsys.readouterr().out


@pytest.mark.slow
def test_recover_gives_up_after_three_times(tmp_path, monkeypatch):
    kill_weights(monkeypatch, step=5, above=0.0)
    config = make_digits_config(tmp_path / "run", learning_rate=3e-2, on_collapse="recover")
    with pytest.raises(VggjaxError, match=r"It went back 3 times before. Try") as caught:
        train(config)
    assert "--on-collapse recover" not in str(caught.value)
    lines = lines_of(tmp_path / "run", "collapse")
    assert [line.get("recoveries") for line in lines] == [1, 2, 3, None]


@pytest.mark.slow
def test_recover_cures_a_loss_that_is_not_finite(tmp_path):
    config = make_digits_config(
        tmp_path / "run", optimizer="sgd", learning_rate=0.5, on_collapse="recover"
    )
    train(config)
    assert "loss is nan" in lines_of(tmp_path / "run", "collapse")[0]["reason"]
    assert lines_of(tmp_path / "run", "epoch")[-1]["val/loss"] < 2.2


@pytest.mark.slow
def test_a_run_that_recovers_and_is_killed_at_any_step_ends_with_the_same_weights_and_log(
    tmp_path, monkeypatch
):
    settings = dict(epochs=4, learning_rate=3e-3, on_collapse="recover", ema=0.9)
    kill_weights(monkeypatch, step=88, above=0.5)
    whole = make_digits_config(tmp_path / "whole", **settings)
    train(whole)
    broken = make_digits_config(tmp_path / "broken", **settings)
    for step in (50, 120, 140, 150):  # before the collapse, within it, and twice behind it
        with monkeypatch.context() as patched:
            interrupt_at(patched, step)
            with pytest.raises(Interrupted):
                train(broken)
    train(broken)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    logs = [log_without_times(tmp_path / name) for name in ("whole", "broken")]
    assert [line["kind"] for line in logs[0]] == [line["kind"] for line in logs[1]]
    for one, other in zip(*logs, strict=True):
        numbers = [name for name, value in one.items() if isinstance(value, float)]
        assert [one[n] for n in numbers] == pytest.approx([other[n] for n in numbers], rel=1e-6)
    assert len(lines_of(tmp_path / "broken", "collapse")) == 1


@pytest.mark.slow
def test_a_later_stage_that_collapses_begins_again_from_the_best_weights_before_it(
    tmp_path, monkeypatch
):
    """Its optimizer starts anew, its features are those of the same frozen layers."""
    kill_weights(monkeypatch, step=93, above=0.5)
    config = make_digits_config(
        tmp_path / "run",
        unfreeze=("none",),
        epochs=None,
        stages=("block5:2", "all:2"),
        learning_rate=3e-3,
        on_collapse="recover",
    )
    train(config)
    (collapse,) = lines_of(tmp_path / "run", "collapse")
    assert (collapse["step"], collapse["stage"]) == (90, "head+all")
    epochs = lines_of(tmp_path / "run", "epoch")
    assert [line["stage"] for line in epochs] == ["head+block5"] * 2 + ["head+all"] * 2
    assert epochs[-1]["val/accuracy"] > epochs[0]["val/accuracy"]
