"""The learning rate range test: what it reads from a curve, and that it trains nothing."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from support.training_runs import make_config, make_three_classes

from vggjax.api import find_learning_rate, fit
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
    """Return losses that fall by 1 around one rate and diverge beyond another."""
    noise = np.random.default_rng(seed).normal(0, noise, len(RATES))
    return [
        start - 1 / (1 + (steepest / rate) ** 2) + (rate / ruin) ** 3 + noise[i]
        for i, rate in enumerate(RATES)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steepest", [1e-4, 1e-3])
def test_the_suggestion_is_near_the_steepest_descent(steepest, seed):
    rate_test = read_curve("head", RATES, curve(steepest, seed=seed))
    assert steepest / 3 < rate_test.suggestion < steepest * 3
    assert rate_test.steepest < rate_test.least < 3e-2 < rate_test.diverged


def test_the_suggestion_is_at_most_a_third_of_the_lowest_loss_s_rate():
    rate_test = read_curve("head", RATES, curve(1e-2, ruin=1.5e-2))
    assert rate_test.suggestion == float(f"{rate_test.least / 3:.1e}") < rate_test.steepest
    assert len(repr(rate_test)) < 200  # without the curve


@pytest.mark.parametrize("seed", range(20))
def test_no_rate_is_read_from_noise(seed):
    losses = np.random.default_rng(seed).normal(1.6, 0.04, len(RATES)).tolist()
    rate_test = read_curve("head", RATES, losses)
    assert rate_test.suggestion is None and rate_test.flags(Config()) is None
    assert "does not fall" in str(rate_test)


def test_a_loss_that_is_not_finite_ends_the_curve():
    losses = [*curve()[:70], math.nan, *curve()[71:]]
    rate_test = read_curve("head", RATES, losses)
    assert rate_test.diverged == RATES[70] and len(rate_test.rates) == 70
    assert 3e-4 < rate_test.suggestion < 3e-3


def test_the_flags_keep_the_backbone_s_rate_in_proportion():
    rate_test = read_curve("head", RATES, curve(1e-3, noise=0.0))
    flags = rate_test.flags(Config())
    assert flags == f"--learning-rate {rate_test.suggestion:.1e}"
    config = Config(unfreeze=("block5",), learning_rate=1e-2, backbone_learning_rate=1e-3)
    assert rate_test.flags(config) == (
        f"{flags} --backbone-learning-rate {rate_test.suggestion / 10:.1e}"
    )


@pytest.mark.parametrize("losses", [[2.0], curve(), [2.3] * 100, curve()[:60]])
def test_any_curve_can_be_drawn(losses):
    image = draw_rate_test(read_curve("head+<i>block5", RATES[: len(losses)], losses))
    assert image.startswith(b"\x89PNG")


@pytest.fixture
def images(tmp_path):
    return make_three_classes(tmp_path)


def make_line(images, workdir, *more):
    return [
        "train", "--dataset", str(images), "--workdir", str(workdir), "--model", "tiny",
        "--weights", "none", "--image-size", "32", "--split", "0.6,0.2,0.2", "--batch-size", "4",
        "--epochs", "2", "--augment", "none", "--head", "gap-classes", "--devices", "1", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("unfreeze", "cut"), [("none", "gap"), pytest.param("all", None, marks=pytest.mark.slow)]
)
def test_the_command_prints_and_plots_a_rate_and_leaves_the_folder_free(
    images, tmp_path, capsys, monkeypatch, unfreeze, cut
):
    cuts = record_cuts(monkeypatch)
    assert main([*make_line(images, tmp_path / "run", "--unfreeze", unfreeze), "--lr-find"]) == 0
    assert cuts == [cut]  # frozen layers are computed once: the steps see the images again
    stdout = capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "lr-find.json").read_text())
    assert len(saved["rates"]) == len(saved["losses"]) <= 100
    assert f"Use      {saved['flags']}\n" in stdout and "--learning-rate " in saved["flags"]
    with Image.open(tmp_path / "run" / "plots" / "lr-find.png") as image:
        assert image.size[0] > 600
    left = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    assert left - {".lock"} == {"lr-find.json", "plots", "plots/lr-find.png"}
    assert find_workdir(Config(workdir=str(tmp_path / "run"))) == tmp_path / "run"


def record_cuts(monkeypatch):
    cuts, make_loop = [], lr_finder.StageLoop

    def record(run, stage, cut, log, **options):
        cuts.append(cut)
        return make_loop(run, stage, cut, log, **options)

    monkeypatch.setattr(lr_finder, "StageLoop", record)
    return cuts


@pytest.mark.slow
def test_layers_are_not_cached_for_fewer_steps_than_a_pass(images, tmp_path, monkeypatch):
    cuts = record_cuts(monkeypatch)
    monkeypatch.setattr(lr_finder, "MAX_STEPS", 3)
    assert main([*make_line(images, tmp_path / "run", "--unfreeze", "none"), "--lr-find"]) == 0
    assert cuts == [None]


@pytest.mark.slow
def test_a_run_in_the_same_folder_trains_as_if_nothing_had_been_tested(images, tmp_path):
    tested = make_config(images, tmp_path / "tested", epochs=1, lr_find=True)
    find_learning_rate(tested)
    with pytest.raises(ConfigError, match="find_learning_rate"):
        fit(tested)
    for name in ("tested", "plain"):
        train(make_config(images, tmp_path / name, epochs=1))
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("tested", "plain"))
    assert one == other
    assert (tmp_path / "tested" / "plots" / "lr-find.png").exists()


def test_a_folder_with_other_plots_is_not_taken_for_a_range_test_s(images, tmp_path, capsys):
    (tmp_path / "run" / "plots").mkdir(parents=True)
    (tmp_path / "run" / "plots" / "holiday.png").write_bytes(b"")
    assert main([*make_line(images, tmp_path / "run"), "--lr-find"]) == 2
    assert "holds files but no run" in capsys.readouterr().err


def test_a_range_test_of_a_cross_validation_is_refused(capsys):
    assert main("train --lr-find --cross-validate 3".split()) == 2
    assert "leave --cross-validate 3 out" in capsys.readouterr().err
