"""The rate range test: what it reads from a curve, that it trains nothing, and what it leaves."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import make_images

from vggjax.api import find_rate, fit
from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.report.figures import draw_rate_test
from vggjax.training import lr_finder
from vggjax.training.config import Config
from vggjax.training.lr_finder import read_curve
from vggjax.training.run_dir.folder import find_workdir
from vggjax.training.trainer import train

RATES = np.geomspace(1e-6, 10, 100).tolist()


def curve(steepest=1e-3, ruin=3e-2, start=2.3, noise=0.02, seed=0):
    """Falls by 1 around a rate, and goes out of hand behind another."""
    noise = np.random.default_rng(seed).normal(0, noise, len(RATES))
    return [
        start - 1 / (1 + (steepest / rate) ** 2) + (rate / ruin) ** 3 + noise[i]
        for i, rate in enumerate(RATES)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steepest", [1e-4, 1e-3])
def test_the_rate_to_take_is_that_of_the_steepest_descent(steepest, seed):
    found = read_curve("head", RATES, curve(steepest, seed=seed))
    assert steepest / 3 < found.suggestion < steepest * 3
    assert found.steepest < found.least < 3e-2 < found.diverged


def test_it_keeps_a_third_below_the_least_loss_where_ruin_is_near():
    found = read_curve("head", RATES, curve(1e-2, ruin=1.5e-2))
    assert found.suggestion == float(f"{found.least / 3:.1e}") < found.steepest


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_read_from_losses_that_fall_nowhere(seed):
    losses = np.random.default_rng(seed).normal(1.6, 0.04, len(RATES)).tolist()
    found = read_curve("head", RATES, losses)
    assert found.suggestion is None and found.flags(Config()) is None
    assert "does not fall" in str(found)


def test_a_loss_that_is_not_finite_ends_the_curve():
    losses = [*curve()[:70], math.nan, *curve()[71:]]
    found = read_curve("head", RATES, losses)
    assert found.diverged == RATES[70] and len(found.rates) == 70
    assert 3e-4 < found.suggestion < 3e-3


def test_the_suggestion_is_said_as_flags_and_the_backbones_rate_stays_in_proportion():
    found = read_curve("head", RATES, curve(1e-3, noise=0.0))
    flags = found.flags(Config())
    assert flags == f"--learning-rate {found.suggestion:.1e}"
    config = Config(unfreeze=("block5",), learning_rate=1e-2, backbone_learning_rate=1e-3)
    assert found.flags(config) == (f"{flags} --backbone-learning-rate {found.suggestion / 10:.1e}")


@pytest.mark.parametrize("losses", [[2.0], curve(), [2.3] * 100, curve()[:60]])
def test_any_curve_can_be_drawn(losses):
    image = draw_rate_test(read_curve("head+<i>block5", RATES[: len(losses)], losses))
    assert image.startswith(b"\x89PNG")


@pytest.fixture
def images(tmp_path, monkeypatch):
    return make_images(tmp_path / "images", ("a", "b", "c"), each=10)


def make_line(images, workdir, *more):
    return [
        "train", "--dataset", str(images), "--workdir", str(workdir), "--model", "tiny",
        "--weights", "none", "--image-size", "32", "--split", "0.6,0.2,0.2", "--batch-size", "4",
        "--epochs", "2", "--augment", "none", "--head", "gap-classes", "--devices", "1", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("unfreeze", ["all", "none"])
def test_the_command_finds_a_rate_and_trains_nothing(images, tmp_path, capsys, unfreeze):
    line = make_line(images, tmp_path / "run", "--unfreeze", unfreeze)
    assert main([*line, "--lr-find"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "lr-find.json").read_text())
    assert len(found["rates"]) == len(found["losses"]) <= 100
    assert f"Use      {found['flags']}\n" in said and "--learning-rate " in found["flags"]
    with Image.open(tmp_path / "run" / "plots" / "lr-find.png") as image:
        assert image.size[0] > 600
    left = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    assert left == {".lock", "lr-find.json", "plots", "plots/lr-find.png"}
    assert find_workdir(Config(workdir=str(tmp_path / "run"))) == tmp_path / "run"


@pytest.mark.slow
def test_a_run_begins_as_new_in_the_folder_and_as_if_nothing_had_been_tried(images, tmp_path):
    settings = dict(
        dataset=str(images), model="tiny", weights="none", image_size=32, split="0.6,0.2,0.2",
        batch_size=4, epochs=1, unfreeze=("all",), head="gap-classes",
        devices=1,
    )  # fmt: skip
    tried = Config(**settings, workdir=str(tmp_path / "tried"), lr_find=True)
    find_rate(tried)
    with pytest.raises(ConfigError, match="find_learning_rate"):
        fit(tried)
    for name in ("tried", "plain"):
        train(Config(**settings, workdir=str(tmp_path / name)))
    ours, theirs = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("tried", "plain"))
    assert ours == theirs
    assert (tmp_path / "tried" / "plots" / "lr-find.png").exists()


def test_frozen_layers_are_computed_once_where_the_steps_see_the_images_again(
    images, tmp_path, monkeypatch
):
    cuts = []
    make_step = lr_finder.make_stage_step

    def make_stage_step(run, stage, *, after):
        cuts.append(after)
        return make_step(run, stage, after=after)

    monkeypatch.setattr(lr_finder, "make_stage_step", make_stage_step)
    for most in (200, 3):
        monkeypatch.setattr(lr_finder, "MAX_STEPS", most)
        line = make_line(images, tmp_path / str(most), "--unfreeze", "none", "--lr-find")
        assert main(line) == 0
    assert cuts == ["gap", None]


def test_a_folder_with_other_plots_is_not_taken_for_one_of_a_rate_test(images, tmp_path, capsys):
    (tmp_path / "run" / "plots").mkdir(parents=True)
    (tmp_path / "run" / "plots" / "holiday.png").write_bytes(b"")
    assert main([*make_line(images, tmp_path / "run"), "--lr-find"]) == 2
    assert "holds files but no run" in capsys.readouterr().err


def test_a_rate_test_of_a_cross_validation_is_refused(capsys):
    assert main("train --lr-find --cross-validate 3".split()) == 2
    assert "leave --cross-validate 3 out" in capsys.readouterr().err
