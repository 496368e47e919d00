"""Settings from a file: default < recipe < file < flag, and every mistake names file and field."""

import json

import pytest
from support.training_runs import make_config as make_run_config

from vggjax.cli.commands.runs import default_config, parse_train
from vggjax.errors import ConfigError
from vggjax.training.config import Config
from vggjax.training.recipes import make_config
from vggjax.training.run_dir.checked_json import write_json
from vggjax.training.settings.config_file import read_settings


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text, name="exp.yaml"):
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def test_a_flag_wins_over_the_file_and_the_file_over_its_recipe(capsys):
    write("recipe: finetune  # block5\nepochs: 8\nlearning-rate: 2e-3\naugment: crop-flip\n")
    config = parse_train(["photos", "--config", "exp.yaml", "--epochs", "3"])
    assert (config.dataset, config.recipe, config.unfreeze) == ("photos", "finetune", ("block5",))
    assert (config.epochs, config.learning_rate, config.augment) == (3, 2e-3, "crop-flip")
    line = capsys.readouterr().out
    assert "Settings from exp.yaml: recipe finetune, learning_rate 0.002" in line
    assert "given otherwise: epochs" in line
    assert make_config(config="exp.yaml", dataset="photos", epochs=3) == config
    assert parse_train(["photos", "--config=exp.yaml", "--recipe", "probe"]).unfreeze == ("none",)
    assert default_config(["--config", "exp.yaml", "--help"]).epochs == 8


def test_yaml_is_read_as_its_version_1_2():
    write(
        "cache_features: off\nduplicates: ignore\nlearning_rate: 1e-3\nseed: 010\nremat: true\n"
        "unfreeze: [block5, block4_conv3]\nlabel_column: diagnosis\nrecipe: null\nmonitor: ~\n"
    )
    assert read_settings("exp.yaml") == {
        "cache_features": "off", "duplicates": "ignore", "learning_rate": 1e-3, "seed": 10,
        "remat": True, "unfreeze": ("block5", "block4_conv3"), "label_column": ("diagnosis",),
        "recipe": None, "monitor": None,
    }  # fmt: skip


def test_stages_replace_what_a_file_trains_and_the_other_way_round():
    write("unfreeze: [block5]\nepochs: 8\nhead_epochs: 2\n")
    config = parse_train(["p", "--config", "exp.yaml", "--stages", "head:1", "block4:2"])
    assert (config.unfreeze, config.epochs, config.num_epochs) == (("none",), None, 3)
    write("stages: ['head:1', 'block5:2']\n")
    assert parse_train(["p", "--config", "exp.yaml", "--unfreeze", "all"]).stages == ()


def test_a_file_may_be_incomplete_without_its_flags():
    write("head_epochs: 9\nunfreeze: [block5]\n")
    assert parse_train(["p", "--config", "exp.yaml", "--epochs", "20"]).head_epochs == 9
    with pytest.raises(ConfigError, match="`head_epochs` must be below"):
        parse_train(["p", "--config", "exp.yaml", "--epochs", "4"])


def test_a_run_begins_again_from_its_own_file_in_another_folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    first = make_run_config(tmp_path / "photos", run, seed=5)
    write_json(run / "config.json", json.loads(first.to_json()))
    for path in ("run", "run/config.json"):
        again = parse_train(["--config", path, "--seed", "6"])
        assert again.workdir is None and again.seed == 6
        assert {*again.differences(first)} == {"seed"}
    assert parse_train(["--config", "run"]).differences(first) == {}


def test_a_recipe_in_a_file_needs_what_it_needs():
    write("recipe: flowers-finetune\n")
    with pytest.raises(ConfigError, match="needs.*`start_from`"):
        parse_train(["--config", "exp.yaml"])
    write("recipe: flowers-finetune\nstart_from: runs/frozen\n")
    assert parse_train(["--config", "exp.yaml"]).start_from == "runs/frozen"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "'epoch' is no setting; did you mean `epochs`"),
        ("epochs: ten", "`epochs` takes int or None; got 'ten'"),
        ("epochs: 0", "`epochs` must be above 0; got 0"),
        ("augment: flips", "`augment`.*'flips'.*Did you mean 'flip'"),
        ("epochs: 3\nepochs: 4", "`epochs` is there twice"),
        ("- 3", "expected `name: value`.*list"),
        ("", "it is empty"),
        ("a: [", "it is not YAML in line"),
        ("epochs: {a: 1}", "`epochs` takes int or None"),
        ("config: other.yaml", "'config' is no setting"),
        ("seed: !!python/object/apply:os.getcwd []", "it is not YAML"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(text, message):
    write(text)
    with pytest.raises(ConfigError, match=f"(?s)exp.yaml: .*{message}"):
        read_settings("exp.yaml")


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="`config` gone.yaml cannot be read: No such file"):
        parse_train(["--config", "gone.yaml"])
    write("{", "a.json")
    with pytest.raises(ConfigError, match="a.json: it is not JSON"):
        read_settings("a.json")
    assert Config().config is None
