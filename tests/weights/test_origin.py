"""Where weights came from, from the first file to a trained run's model.json; and that a run opens
its weight file once.
"""

import hashlib
import io
import json
import subprocess
import time

import pytest
from rich.console import Console
from support.networks import assert_same_weights, random_weights
from support.tiny_run import make_images

from vggjax.cli.main import main
from vggjax.errors import ConfigError, WeightsError
from vggjax.training.config import Config
from vggjax.training.console import print_run_summary
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.run_result import load_model, save_model
from vggjax.weights.convert import convert_file
from vggjax.weights.digests import CAFFE_IN_TORCH, PUBLISHED, TORCHVISION, Digests
from vggjax.weights.load import load_pretrained
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights


@pytest.fixture
def start(tmp_path, tiny_arch):
    """Images, and a weight file with torchvision's names."""
    make_images(tmp_path / "images", ("a", "b"), each=8)
    path = tmp_path / "tv.safetensors"
    write_weights(path, random_weights(tiny_arch), layout="torchvision")
    return path


def make_config(path, workdir, **settings):
    settings = dict(duplicates="ignore", split="0.4,0.3,0.3") | settings
    return Config(
        dataset=str(path.with_name("images")), workdir=str(workdir), model="tiny", devices=1,
        weights=str(path), head="gap-classes", image_size=32, **settings,
    )  # fmt: skip


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_takes_the_preprocessing_that_its_weights_expect(start, tmp_path):
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


def test_the_source_is_passed_on_from_file_to_file_and_into_model_json(start, tmp_path):
    first = sha256(start)
    convert_file(start, tmp_path / "a.keras")
    convert_file(tmp_path / "a.keras", tmp_path / "b.safetensors")
    assert WeightFile(tmp_path / "b.safetensors").info.metadata["arch"] == "tiny"
    run = prepare_run(make_config(tmp_path / "b.safetensors", tmp_path / "run"))
    provenance = run.info.provenance
    expected = {
        "weights_sha256": sha256(tmp_path / "b.safetensors"),
        "weights_format": "vggjax safetensors",
        "weights_source": "tv.safetensors",
        "weights_source_sha256": first,
        "weights_source_format": "torchvision safetensors",
        "weights_source_date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    assert provenance.items() >= expected.items()
    console = Console(width=200, file=io.StringIO())
    print_run_summary(console, run)
    assert f"{expected['weights_sha256']}: vggjax safetensors" in console.file.getvalue()
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", run.model, run.info)
    assert load_model(tmp_path / "run")[1].provenance == provenance
    convert_file(tmp_path / "run", tmp_path / "out.h5")
    info = WeightFile(tmp_path / "out.h5").info
    assert info.metadata["weights_source_sha256"] == first
    assert json.loads(info.metadata["class_names"]) == ["a", "b"]
    assert (info.metadata["head"], info.preprocess) == ("gap-2", "torch")


def test_a_run_parses_its_weight_file_in_one_process_and_hashes_it_once(
    start, tmp_path, monkeypatch
):
    path = tmp_path / "w.h5"
    convert_file(start, path)
    processes, hashes, run_process, new_hash = [], [], subprocess.run, hashlib.sha256

    def count_process(*args, **kwargs):
        processes.append(args)
        return run_process(*args, **kwargs)

    class CountedHash:
        def __init__(self, *args, **kwargs):
            self.hash, self.length = new_hash(*args, **kwargs), 0

        def update(self, piece):
            self.length += len(piece)
            self.hash.update(piece)

        def hexdigest(self):
            hashes.append(self.length)
            return self.hash.hexdigest()

    expected = sha256(path)
    monkeypatch.setattr(subprocess, "run", count_process)
    monkeypatch.setattr(hashlib, "sha256", CountedHash)
    run = prepare_run(make_config(path, tmp_path / "run", expect_sha256=expected))
    print_run_summary(Console(file=io.StringIO()), run)
    assert run.info.provenance["weights_sha256"] == expected
    assert len(processes) == 1
    assert hashes.count(path.stat().st_size) == 1


def test_a_file_that_changes_after_it_was_opened_is_refused(start, tmp_path):
    file = WeightFile(start)
    assert file.shapes["block1_conv1"]["kernel"] == (3, 3, 3, 4)
    replacement = tmp_path / "new.safetensors"
    write_weights(replacement, read_weights(start), layout="torchvision")
    replacement.rename(start)
    for use in (file.read, lambda: file.digests):
        with pytest.raises(WeightsError, match="was changed after it had been opened"):
            use()
    assert read_weights(start)


def test_a_file_can_be_read_twice(start):
    with WeightFile(start) as file:
        assert_same_weights(file.read(), file.read())


def test_published_files_are_recognized_by_their_checksums(start):
    assert WeightFile(start).digests.known_as is None
    for entry in PUBLISHED:
        known_as = Digests(sha256="0" * 64, md5=entry.md5).known_as
        assert known_as == f"Keras' published {entry.file_name}"
    for digits, name in TORCHVISION.items():
        known_as = Digests(sha256=digits + "0" * 56, md5="").known_as
        assert known_as == f"torchvision's published {name}-{digits}.pth"


def test_convert_prints_the_checksum_and_refuses_an_unexpected_file(start, tmp_path, capsys):
    dst = tmp_path / "new.safetensors"
    command = ["convert", str(start), str(dst), "--expect-sha256"]
    assert main([*command, "f" * 64]) == 2
    assert not dst.exists() and "[E_DIGEST]" in capsys.readouterr().err
    assert main([*command, sha256(start), "--format", "timm"]) == 0
    printed = capsys.readouterr().out
    facts = (sha256(start), "torchvision safetensors", "Preprocess  torch", "none of the published")
    assert all(fact in printed for fact in facts)


def test_training_and_loading_refuse_an_unexpected_file(start, tmp_path):
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


def test_a_chain_of_conversions_through_every_format_changes_no_bit(start, tmp_path):
    path = start
    for i, ending in enumerate((".h5", ".keras", ".safetensors", ".weights.h5", ".h5")):
        convert_file(path, tmp_path / f"{i}{ending}")
        path = tmp_path / f"{i}{ending}"
    convert_file(path, tmp_path / "back.safetensors", layout="torchvision")
    assert_same_weights(read_weights(tmp_path / "back.safetensors"), read_weights(start))
    convert_file(start, tmp_path / "direct.safetensors", layout="torchvision")
    direct = (tmp_path / "direct.safetensors").read_bytes()
    assert direct == (tmp_path / "back.safetensors").read_bytes()


def test_weights_whose_pixels_are_in_doubt_ask_for_them_unless_their_checksum_is_known(
    start, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "doubt.h5"
    metadata = {"preprocess_doubt": "its names are those of two libraries"}
    write_weights(path, read_weights(start), metadata=metadata)
    with pytest.raises(ConfigError, match=r"those of two libraries. Set `preprocess` to caffe"):
        prepare_run(make_config(path, tmp_path / "run"))
    run = prepare_run(make_config(path, tmp_path / "run", preprocess="torch"))
    assert run.info.preprocessing.mode == "torch"
    assert main(["verify", str(path)]) == 0
    printed = capsys.readouterr().out
    assert (
        "unsure: its names" in printed and "as caffe BGR" in printed and "as torch (RGB" in printed
    )
    monkeypatch.setitem(CAFFE_IN_TORCH, sha256(path)[:8], "vgg16")
    run = prepare_run(make_config(path, tmp_path / "run"))
    assert run.info.preprocessing.mode == run.config.preprocess == "caffe"
    assert run.info.provenance["weights_known_as"].startswith("Caffe's vgg16 in torch's format")


def test_the_first_screen_of_training_names_what_was_left_out_of_the_weights(
    start, tmp_path, monkeypatch
):
    monkeypatch.setattr(WeightFile, "notes", ["left out normalization: set `preprocess`"])
    console = Console(width=200, file=io.StringIO())
    print_run_summary(console, prepare_run(make_config(start, tmp_path / "run")))
    assert "left out normalization: set --preprocess" in console.file.getvalue()
