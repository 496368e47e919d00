"""A published base is known by its numbers, whatever file holds them."""

import io
import json
import pickle

import numpy as np
import pytest
from rich.console import Console
from support.array_files import BASE, NARROW, WEIGHTS, flat, nested, onnx_model
from support.networks import assert_same_weights, random_weights
from support.tiny_run import make_images

from vggjax.cli.main import main
from vggjax.models.arch import ARCHS
from vggjax.training.config import Config
from vggjax.training.console import print_run_summary
from vggjax.training.prepare import prepare_run
from vggjax.weights import digests, pretrained, weight_file
from vggjax.weights.convert import convert_file
from vggjax.weights.digests import PUBLISHED_BASES, PublishedBase, base_digest
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

RGB = {k: dict(v) for k, v in BASE.items()}
RGB["block1_conv1"]["kernel"] = np.ascontiguousarray(BASE["block1_conv1"]["kernel"][:, :, ::-1])


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Register the narrow network, and its base as one that Keras publishes."""
    monkeypatch.setitem(ARCHS, NARROW.name, NARROW)
    bases = {
        base_digest(BASE): PublishedBase(NARROW.name, "Keras'", "caffe"),
        base_digest(RGB): PublishedBase(NARROW.name, "Keras'", "caffe", is_rgb=True),
    }
    monkeypatch.setattr(weight_file, "PUBLISHED_BASES", bases)


def save(path, weights):
    """Write weights in the format that the ending names."""
    if path.suffix == ".npz":
        with open(path, "wb") as file:
            np.savez(file, **flat(weights, "{caffe}_{w}"))
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(nested(flat(weights, "VGG_0/{kind}_{number}/{param}"))))
    elif path.suffix == ".onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
        path.write_bytes(onnx_model(weights).SerializeToString())
    else:
        layout = {".tv": "torchvision"}.get(path.suffix)
        write_weights(path.with_suffix(".safetensors") if layout else path, weights, layout=layout)
        return path.with_suffix(".safetensors") if layout else path
    return path


@pytest.mark.parametrize("weights", [BASE, WEIGHTS], ids=["base", "with a top"])
@pytest.mark.parametrize(
    "ending", [".h5", ".weights.h5", ".keras", ".safetensors", ".tv", ".npz", ".pkl", ".onnx"]
)
def test_a_published_base_is_recognized_in_every_format(tmp_path, ending, weights, capsys):
    file = WeightFile(save(tmp_path / f"w{ending}", weights))
    assert file.known_as == "Keras' published narrow11, its convolutional base bit for bit"
    assert (file.info.preprocess, file.info.states_preprocess) == ("caffe", True)
    assert file.provenance["weights_known_as"] == file.known_as
    if ending == ".onnx" and weights is BASE:
        assert main(["verify", str(file.path)]) == 0
        printed = capsys.readouterr().out
        assert f"Known as       {file.known_as}" in printed and "unsure" not in printed


def test_another_number_or_a_stated_preprocessing_is_believed(tmp_path):
    other = {k: dict(v) for k, v in BASE.items()}
    bias = other["block5_conv2"]["bias"] = BASE["block5_conv2"]["bias"].copy()
    bias[-1] = np.nextafter(bias[-1], np.float32(2))
    file = WeightFile(save(tmp_path / "w.npz", other))
    assert file.known_as is None and file.info.preprocess_doubt
    write_weights(tmp_path / "run.safetensors", BASE, metadata={"preprocess": "unit"})
    file = WeightFile(tmp_path / "run.safetensors")
    assert (file.known_as is None, file.info.preprocess) == (False, "unit")


def test_a_base_whose_first_kernel_takes_rgb_is_read_as_keras_one(tmp_path):
    file = WeightFile(save(tmp_path / "w.npz", RGB))
    assert_same_weights(file.read(), BASE)
    assert file.known_as.endswith("bit for bit, with its first kernel in the order RGB")
    assert file.info.preprocess == "caffe" and "became BGR" in file.notes[0]
    convert_file(file.path, tmp_path / "w.h5")
    assert_same_weights(read_weights(tmp_path / "w.h5"), BASE)


def test_training_announces_the_base_and_takes_its_pixels(tmp_path):
    make_images(tmp_path / "images", ("a", "b"), each=8)
    path = save(tmp_path / "w.pkl", WEIGHTS)
    config = Config(
        dataset=str(tmp_path / "images"), workdir=str(tmp_path / "run"), model=NARROW.name,
        weights=str(path), head="gap-classes", image_size=32, devices=1, duplicates="ignore",
        split="0.4,0.3,0.3",
    )  # fmt: skip
    run = prepare_run(config)
    console = Console(width=200, file=io.StringIO())
    print_run_summary(console, run)
    assert ": Keras' published narrow11, its convolutional base" in console.file.getvalue()
    assert run.info.preprocessing.mode == "caffe"
    assert "narrow11" in json.dumps(run.info.provenance)


def test_weights_imagenet_accepts_the_published_numbers_from_any_container(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("VGGJAX_CACHE", "KERAS_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "weights").mkdir()
    table = [
        digests.Published(NARROW.name, top, 1, "0" * 32, "http://127.0.0.1:9")
        for top in (True, False)
    ]
    path = tmp_path / "weights" / f"{NARROW.name}_notop.safetensors"
    convert_file(save(tmp_path / "w.pkl", WEIGHTS), path)
    found = pretrained.find_pretrained(NARROW.name, False, published=table, probe_s=1)
    assert found.path.resolve() == path
    with pytest.raises(weight_file.WeightsError, match="not on this machine"):
        pretrained.find_pretrained(NARROW.name, True, published=table, probe_s=1)
    write_weights(path, random_weights(NARROW, seed=1))
    with pytest.raises(weight_file.WeightsError, match="Skipped"):
        pretrained.find_pretrained(NARROW.name, False, published=table, probe_s=1)


def test_the_real_bases_are_in_the_table():
    assert {(base.arch, base.publisher) for base in PUBLISHED_BASES.values()} == {
        ("vgg16", "Keras'"),
        ("vgg16", "torchvision's"),
    }
    assert all(len(digest) == 64 for digest in PUBLISHED_BASES)
