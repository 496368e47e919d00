"""No flipped bit of a finished run changes a figure or a prediction without a word."""

import json
import shutil

import numpy as np
import pytest
from support.tiny_run import make_images, make_run

from vggjax.errors import VggjaxError
from vggjax.training.run_dir.checked_json import check_form, read_json, write_json
from vggjax.training.run_dir.run_result import load_model, read_info

FIELDS = {"name": "é\n", "numbers": [1, 2.5, 1e-30], "nested": {"b": None, "a": True}, "empty": []}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return make_run(folder / "run", make_images(folder / "images", each=4))


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def flips(data, count):
    """Yield the data with one bit flipped, `count` times, by a seed."""
    for bit in np.random.default_rng(0).choice(8 * len(data), count, replace=False):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_a_flip_in_a_json_file_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, FIELDS)
    assert read_json(path) == FIELDS
    data = path.read_bytes()
    refused = 0
    for changed in flips(data, 500):
        path.write_bytes(changed)
        try:
            assert {name: read_json(path)[name] for name in FIELDS} == FIELDS
        except ValueError:
            refused += 1
    assert refused > 400


def test_it_may_be_formatted_anew_and_an_old_one_has_no_digest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, FIELDS)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_json(path) == FIELDS
    path.write_text(json.dumps(FIELDS))
    assert read_json(path) == FIELDS


def test_one_without_its_digest_or_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, FIELDS)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"sha257": fields.pop("sha256")}))
    with pytest.raises(ValueError, match="not those that were written"):
        read_json(path)
    write_json(path, FIELDS | {"format": 3})
    with pytest.raises(ValueError, match="a later version of vggjax wrote it"):
        read_json(path)


FORM = {"name": str, "rows": [{"score": float}], "reasons": {...: str}}
FIT = {"name": "a", "rows": [{"score": 1}, {"score": 0.5, "more": None}], "reasons": {}, "b": []}


def test_a_value_has_its_form_or_is_refused_by_its_key():
    check_form(FIT, FORM)
    for change, message in [
        ({"name": 3}, "'name' must be a str; got '3'"),
        ({"rows": {}}, "'rows' must be a list"),
        ({"rows": [{}]}, "an entry of 'rows' lacks 'score'"),
        ({"rows": [{"score": True}]}, "'score' must be a float"),
        ({"reasons": {"x.png": None}}, "'x.png' must be a str"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_form(FIT | change, FORM)


@pytest.mark.parametrize("text", ["[1]", "3", "", "[" * 100_000, '{"a": 1', "\x00"])
def test_what_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_a_flip_in_a_saved_model_is_refused_or_changes_nothing(tmp_path, run):
    info = read_info(run)
    for name, count in (("model.safetensors", 60), ("model.json", 200)):
        path = run / name
        shutil.copy(path, tmp_path / "intact")
        for changed in flips(path.read_bytes(), count):
            path.write_bytes(changed)
            try:
                assert load_model(run)[1] == info
                assert name == "model.json"
            except VggjaxError as error:
                assert "\n" not in str(error)
        shutil.copy(tmp_path / "intact", path)
    assert load_model(run)[1] == info


@pytest.mark.parametrize(
    "change",
    [
        {"arch": None},
        {"arch": "vgg61"},
        {"head": "gap-x"},
        {"class_names": ["a", "b"]},
        {"class_names": ["a", "b", "c", "d"]},
        {"class_names": ["a", "b", "a"]},
        {"class_names": [1, 2, 3]},
        {"class_names": None},
        {"preprocessing": {}},
        {"preprocessing": []},
        {"task": "multilabel"},
        {"task": "multilabel", "thresholds": [0.5]},
        {"new": 1},
    ],
    ids=str,
)
def test_a_description_that_fits_no_model_is_refused_in_one_line(run, change):
    write_json(run / "model.json", read_json(run / "model.json") | change)
    with pytest.raises(VggjaxError, match="model.json is damaged: ") as caught:
        load_model(run)
    assert "\n" not in str(caught.value)
