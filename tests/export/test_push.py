"""A run pushed to a hub and loaded from it again, against a stand-in of the hub's interface."""

import json
import re

import numpy as np
import pytest
from support.hub import serve_hub
from support.tiny_run import make_images, make_run
from support.training_runs import make_config

import vggjax
from vggjax.cli.main import main
from vggjax.errors import ConfigError, VggjaxError, WeightsError
from vggjax.evaluation.evaluate import evaluate
from vggjax.export.push import push_run
from vggjax.models.params import extract
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.run_result import load_model
from vggjax.weights.hub.fetch import is_hub_address, local_path, parse_address
from vggjax.weights.weight_file import read_weights

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("pushed")
    run = make_run(root / "run", make_images(root / "photos", each=6))
    evaluate(run)
    (run / "log.jsonl").write_text("")
    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def test_an_address_arrives_as_it_is_at_the_service_and_the_demo(monkeypatch):
    received = []
    for name in ("run_service", "run_demo"):
        monkeypatch.setattr(
            f"vggjax.serve.command.{name}", lambda run, **options: received.append(run) or 0
        )
    assert main(["serve", "hf://maria/flowers"]) == main(["demo", "hf://maria/flowers"]) == 0
    assert received == ["hf://maria/flowers"] * 2


def test_a_pushed_run_predicts_the_same_and_names_no_place(run, hub, tmp_path, capsys):
    assert main(["push", str(run), "maria/flowers"]) == 0
    out = capsys.readouterr().out
    assert "private: only its owner" in out and "--workdir hf://maria/flowers" in out
    files = hub.repos["maria/flowers"]
    assert {*files} == {"model.safetensors", "model.json", "README.md"}
    for content in files.values():
        assert str(run.parent).encode() not in content
    card = files["README.md"].decode()
    assert "--workdir hf://maria/flowers" in card and "library_name" in card
    assert json.loads(files["model.json"])["weights_sha256"]
    images = sorted((run.parent / "photos").rglob("*.png"))
    expected = vggjax.predict(run, images)
    received = vggjax.load_run("hf://maria/flowers").predict(images)
    np.testing.assert_array_equal(received.probs, expected.probs)
    assert received.class_names == expected.class_names
    assert main(["predict", "hf://maria/flowers", str(images[0])]) == 0
    assert main(["predict", str(images[0]), "--workdir", f"hf://maria/flowers@{hub.commit}"]) == 0
    assert main(["export", "hf://maria/flowers", str(tmp_path / "flowers.stablehlo")]) == 0
    fetched = local_path("hf://maria/flowers")
    assert read_weights(fetched).keys() == read_weights(run / "model.safetensors").keys()


def test_a_training_starts_from_the_weights_of_a_repository(run, hub, tmp_path):
    push_run(run, "maria/flowers")
    config = make_config(
        run.parent / "photos", tmp_path / "run", weights="hf://maria/flowers", unfreeze="none"
    )
    prepared = prepare_run(config)
    assert prepared.info.provenance["weights"] == "hf://maria/flowers"
    assert prepared.config.preprocess == load_model(run)[1].preprocessing.mode
    start, given = extract(prepared.model), read_weights(run / "model.safetensors")
    for layer in {*given} - {"predictions"}:
        np.testing.assert_array_equal(start[layer]["kernel"], given[layer]["kernel"])


def test_a_repository_is_private_unless_asked_and_keeps_its_visibility(run, hub):
    assert push_run(run, "maria/a").is_private and hub.private == {"maria/a": True}
    assert not push_run(run, "maria/b", public=True).is_private
    assert push_run(run, "maria/a", public=True).is_private  # as it was
    assert hub.commits == 3


def test_weights_that_changed_on_the_hub_are_refused(run, hub):
    push_run(run, "maria/flowers")
    files = hub.repos["maria/flowers"]
    files["model.safetensors"] = files["model.safetensors"][:-4] + b"\0\0\0\1"
    with pytest.raises(WeightsError, match="is not the file that the training wrote"):
        vggjax.load_run("hf://maria/flowers")


def test_what_is_missing_is_named_with_the_way_out(run, hub, monkeypatch, tmp_path):
    push_run(run, "maria/flowers")
    del hub.repos["maria/flowers"]["model.json"]
    for address, message in {
        "hf://maria/other": "no repository hf://maria/other, or it is private.*hf auth login",
        "hf://maria/flowers": "has no model.json",
        "hf://maria/flowers@v2": "no such revision",
    }.items():
        with pytest.raises(WeightsError, match=message):
            vggjax.load_run(address)
    with pytest.raises(ConfigError, match="user/name, as in maria/flowers; got flowers"):
        push_run(run, "flowers")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(VggjaxError, match="maria/new cannot be pushed: log in.*hf auth login"):
        push_run(run, "maria/new")
    assert "maria/new" not in hub.repos


def test_an_address_has_a_form():
    assert parse_address("hf://a/b") == ("a/b", None, None)
    assert parse_address("hf://a/b@v1.0/x/y.h5") == ("a/b", "v1.0", "x/y.h5")
    assert is_hub_address("hf://a") and not is_hub_address("runs/hf")
    for text in ("hf://a", "hf://a/b/../c", "hf:///b", "hf://a/b@"):
        with pytest.raises(ConfigError, match=re.escape("hf://user/name")):
            parse_address(text)
