"""A model card states the run's figures, and nothing in it is Markdown but its own."""

import json

import pytest
from support.evaluated_run import evaluated
from support.tiny_run import make_images

from vggjax.errors import ConfigError
from vggjax.export.card import write_card


@pytest.fixture
def run(tmp_path):
    return evaluated(tmp_path / "run", make_images(tmp_path / "photos"))


def test_a_card_states_figures_data_and_license(run, tmp_path):
    path = write_card(run)
    assert path == run / "README.md"
    text, evaluation = path.read_text("utf-8"), json.loads((run / "eval.json").read_text())
    low, high = evaluation["accuracy_interval"]
    assert f"**{evaluation['accuracy']:.1%}** (95% interval {low:.1%} to {high:.1%})" in text
    assert "On 12 test images" in text and "pipeline_tag" in text and "not recorded" in text
    assert "\\<i\\>rose & co" in text and "<i>" not in text and "薔薇" in text
    assert str(tmp_path) not in text, "a folder of this machine"


def test_a_card_names_the_temperature_only_where_it_helps(run):
    for temperature, is_named in ((None, False), (1.0, False), (0.5, True)):
        info = json.loads((run / "model.json").read_text("utf-8")) | {"temperature": temperature}
        (run / "model.json").write_text(json.dumps(info))
        assert ("Calibration: temperature 0.50" in write_card(run).read_text("utf-8")) == is_named


def test_a_license_and_a_file_may_be_given(run, tmp_path):
    write_card(run, out=tmp_path / "card.md", license="mit")
    text = (tmp_path / "card.md").read_text("utf-8")
    assert 'license: "mit"' in text and "not recorded" not in text
    for name in (run / "eval.json", tmp_path / "photo.jpg"):
        with pytest.raises(ConfigError, match="must end in .md"):
            write_card(run, out=name)
