"""What is noted of where weights came from, from the first file to a trained run's model.json."""

import hashlib
import json
import time

import numpy as np
import pytest
from rich.console import Console
from support.tiny_run import make_images
from test_load import random_weights

from vggjax.cli.main import main
from vggjax.errors import ConfigError, WeightsError
from vggjax.training.config import Config
from vggjax.training.console import print_run_summary
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.saved_model import load_model, save_model
from vggjax.weights import digests
from vggjax.weights.convert import convert_file
from vggjax.weights.digests import PUBLISHED, Digests
from vggjax.weights.load import load_pretrained
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights


@pytest.fixture
def start(tmp_path, monkeypatch, tiny_arch):
    """Images, and a file of weights under torchvision's names."""
    make_images(tmp_path / "images", ("a", "b"), each=8)
    path = tmp_path / "tv.safetensors"
    write_weights(path, random_weights(tiny_arch), layout="torchvision")
    return path


def make_config(path, workdir, **settings):
    settings = dict(duplicates="ignore", split="0.4,0.3,0.3") | settings
    return Config(
        dataset=str(path.with_name("images")), workdir=str(workdir), model="tiny",
        weights=str(path), head="gap-classes", image_size=32, **settings,
    )  # fmt: skip


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_torchvision_s_weights_get_torch_s_pixels_unless_others_are_asked_for(start, tmp_path):
    convert_file(start, tmp_path / "k.h5")
    for path in (start, tmp_path / "k.h5"):
        run = prepare_run(make_config(path, tmp_path / "run"))
        assert run.info.preprocessing.mode == run.config.preprocess == "torch"
    run = prepare_run(make_config(start, tmp_path / "run", preprocess="unit"))
    assert run.info.preprocessing.mode == "unit"
    plain = tmp_path / "plain.h5"
    write_weights(plain, read_weights(start))
    run = prepare_run(make_config(plain, tmp_path / "run"))
    assert (run.config.preprocess, run.info.preprocessing.mode) == ("auto", "caffe")


def test_the_origin_goes_from_file_to_file_and_into_model_json(start, tmp_path):
    first = sha256(start)
    convert_file(start, tmp_path / "a.keras")
    convert_file(tmp_path / "a.keras", tmp_path / "b.safetensors")
    run = prepare_run(make_config(tmp_path / "b.safetensors", tmp_path / "run"))
    noted = run.info.provenance
    assert noted["weights_sha256"] == sha256(tmp_path / "b.safetensors")
    assert noted["weights_format"] == "vggjax safetensors"
    assert noted["weights_source"] == "tv.safetensors"
    assert noted["weights_source_sha256"] == first
    assert noted["weights_source_format"] == "torchvision safetensors"
    assert noted["weights_source_date"] == time.strftime("%Y-%m-%d", time.gmtime())
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", run.model, run.info)
    assert load_model(tmp_path / "run")[1].provenance == noted
    convert_file(tmp_path / "run" / "model.safetensors", tmp_path / "out.h5")
    facts = WeightFile(tmp_path / "out.h5").info
    assert facts.metadata["weights_source_sha256"] == first
    assert json.loads(facts.metadata["class_names"]) == ["a", "b"]
    assert (facts.metadata["head"], facts.preprocess) == ("gap-2", "torch")


def test_the_first_screen_shows_the_checksum_and_a_known_file_s_name(start, tmp_path, monkeypatch):
    def screen():
        console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))
        with console.file:
            print_run_summary(console, prepare_run(make_config(start, tmp_path / "run")))
            return console.export_text()

    assert f"{sha256(start)}: torchvision safetensors" in screen()
    monkeypatch.setitem(digests.TORCHVISION, sha256(start)[:8], "vgg11")
    assert f"torchvision's published vgg11-{sha256(start)[:8]}.pth" in screen()


def test_a_published_file_of_keras_is_recognized_by_its_md5(start):
    assert WeightFile(start).digests.known_as is None
    for entry in PUBLISHED:
        known_as = Digests(sha256="0" * 64, md5=entry.md5).known_as
        assert known_as == f"Keras' published {entry.file_name}"


def test_convert_prints_the_checksum_and_refuses_another(start, tmp_path, capsys):
    dst = tmp_path / "new.safetensors"
    command = ["convert", str(start), str(dst), "--expect-sha256"]
    assert main([*command, "f" * 64]) == 2
    assert not dst.exists() and "[E_DIGEST]" in capsys.readouterr().err
    assert main([*command, sha256(start), "--format", "timm"]) == 0
    said = capsys.readouterr().out
    for words in (
        sha256(start),
        "torchvision safetensors",
        "Preprocess  torch",
        "none of the publ",
    ):
        assert words in said, words
    assert main(["convert", str(start), str(tmp_path / "w.h5"), "--format", "timm"]) == 2
    assert "it goes with .safetensors, .pth, .pt" in capsys.readouterr().err


def test_training_and_loading_refuse_another_file(start, tmp_path):
    config = make_config(start, tmp_path / "run", expect_sha256="0" * 64)
    with pytest.raises(WeightsError, match=f"SHA-256 {sha256(start)}; expected 0000"):
        prepare_run(config)
    assert prepare_run(make_config(start, tmp_path / "run", expect_sha256=sha256(start).upper()))
    with pytest.raises(WeightsError, match="expected 1111"):
        load_pretrained("tiny", weights=start, include_top=False, expect_sha256="1" * 64)
    with pytest.raises(WeightsError, match="64 hexadecimal digits"):
        make_config(start, tmp_path / "run", expect_sha256="abc")
    with pytest.raises(ConfigError, match="left out if `weights` is none"):
        Config(weights="none", expect_sha256="0" * 64)


def test_the_same_conversion_twice_gives_the_same_bytes(start, tmp_path):
    for ending in (".safetensors", ".h5", ".weights.h5", ".keras"):
        for name in "ab":
            convert_file(start, tmp_path / f"{name}{ending}")
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_there_and_back_through_every_layout_changes_no_bit(start, tmp_path):
    want = read_weights(start)
    path = start
    for i, ending in enumerate((".h5", ".keras", ".safetensors", ".weights.h5", ".h5")):
        convert_file(path, tmp_path / f"{i}{ending}")
        path = tmp_path / f"{i}{ending}"
    convert_file(path, tmp_path / "back.safetensors", layout="torchvision")
    got = read_weights(tmp_path / "back.safetensors")
    for layer, params in want.items():
        for name, array in params.items():
            np.testing.assert_array_equal(got[layer][name], array)
    original = tmp_path / "again.safetensors"
    convert_file(start, original, layout="torchvision")
    assert original.read_bytes() == (tmp_path / "back.safetensors").read_bytes()
