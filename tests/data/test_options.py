"""How a dataset is read: the options, their checks, and groups of images."""

import json

import numpy as np
import pytest
from support.made_source import source
from support.scenes import put_flat

from vggjax.data.sources.open import open_source
from vggjax.data.sources.options import DatasetOptions
from vggjax.data.sources.source import number_groups
from vggjax.data.splits.splits import make_folds, make_splits
from vggjax.data.splits.stratify import merge_groups
from vggjax.errors import ConfigError
from vggjax.training.config import Config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task": "multi-label"}, "`task`.*Did you mean 'multilabel'"),
        ({"label_from": "filename"}, "`label_from`.*Did you mean 'name'"),
        ({"group_pattern": "(a"}, r"`group_pattern` '\(a' is not a regular expression"),
        ({"group_pattern": "a+"}, "`group_pattern` must be .* with a group"),
        ({"label_pattern": "(a)"}, "left out unless `label_from` is name"),
        ({"label_separator": "|"}, "left out unless `task` is multilabel"),
        ({"group_column": "p", "group_pattern": "(a)"}, "`group_pattern` must be left out"),
        ({"path_column": ""}, "`path_column` is empty"),
    ],
)
def test_a_wrong_option_is_refused_by_the_options_and_by_the_config(values, words):
    for kind in (DatasetOptions, Config):
        with pytest.raises(ConfigError, match=words):
            kind(**values)


def test_a_config_keeps_its_options_in_its_json_and_reads_older_ones():
    config = Config(label_column=("a", "b"), group_pattern="^(a)")
    assert Config.from_json(config.to_json()) == config
    fields = json.loads(Config().to_json())
    for name in DatasetOptions.__dataclass_fields__:
        del fields[name]
    assert Config.from_json(json.dumps(fields)) == Config()
    assert config.differences(Config()).keys() == {"label_column", "group_pattern"}


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        ("digits", {"group_pattern": "(a)"}),
        ("photos", {"label_column": "label"}),
        ("photos.csv", {"label_from": "name"}),
    ],
)
def test_an_option_that_does_not_apply_is_refused(tmp_path, monkeypatch, dataset, values):
    put_flat(tmp_path, "photos/a/1.png", "photos/b/2.png")
    (tmp_path / "photos.csv").write_text("path,label\nphotos/a/1.png,a\nphotos/b/2.png,b\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not apply to"):
        open_source(dataset, options=DatasetOptions(**values))


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_pattern_groups_the_images_of_one_patient(tmp_path, kind):
    names = [f"{'ab'[p % 2]}/p{p:02}_{i}.png" for p in range(20) for i in range(3)]
    put_flat(tmp_path / "photos", *names, "a/single.png")
    dataset = tmp_path / "photos"
    if kind == "csv":
        dataset = tmp_path / "photos" / "table.csv"
        rows = [f"{name},{name[0]}\n" for name in [*names, "a/single.png"]]
        dataset.write_text("path,label\n" + "".join(rows))
    opened = open_source(str(dataset), options=DatasetOptions(group_pattern=r"^p(\d+)_"))
    assert any(
        "20 groups of images" in note and "1 images in none" in note for note in opened.notes
    )
    patients = np.array([str(name)[2:5] for name in opened.ids])
    for splits in (make_splits(opened), *make_folds(opened, 5, seed=0)):
        of = {p: {s for s, part in splits.items() if p in patients[part]} for p in patients}
        assert all(len(found) == 1 for found in of.values())
    with pytest.raises(ConfigError, match="finds no group .* 'p00_0'"):
        open_source(str(dataset), options=DatasetOptions(group_pattern="^x(.)"))


def test_groups_and_duplicates_are_kept_together():
    assert merge_groups(None, None) is None
    one, other = np.array([7, 7, 1, 2, 3, 4]), np.array([0, 1, 1, 3, 4, 4])
    assert merge_groups(one, other).tolist() == [0, 0, 0, 3, 4, 4]
    assert merge_groups(one, None) is one and merge_groups(None, other) is other
    assert number_groups(["a", "", "b", "a", ""]).tolist() == [0, 1, 2, 0, 4]
    assert number_groups(["", ""]) is None and source([1, 2]).groups is None
