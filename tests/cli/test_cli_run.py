"""One training through the command line, and every command on its run folder."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.tiny_run import CLASSES, make_images

import vggjax
from vggjax.cli.main import main

TRAIN = (
    "train --dataset flowers --model tiny --weights none --unfreeze all --image-size 32 "
    "--split 0.4,0.2,0.4 --batch-size 8 --workdir runs/first"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains once through the command line, with one image that cannot be read."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_images(Path("flowers"))
        Path("flowers/daisy/bad.jpg").write_text("no image\n")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*TRAIN, "--epochs", "1"])
        yield code, out.getvalue(), err.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_training_leaves_out_and_names_an_unreadable_image(trained):
    code, out, err = trained
    assert code == 3
    assert err == "vggjax: left out: daisy/bad.jpg: not an image\n"
    assert "epoch 1/1" in out and "report.html" in out


def test_a_run_folder_has_every_file_of_the_contract(trained):
    run = Path("runs/first")
    assert json.loads((run / "config.json").read_text())["unfreeze"] == ["all"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (epoch,) = [line for line in log if line["kind"] == "epoch"]
    assert {"step", "train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(epoch)
    (test,) = [line for line in log if line["kind"] == "test"]
    assert test["test/accuracy"] == json.loads((run / "eval.json").read_text())["accuracy"]
    assert any((run / "checkpoints").iterdir())
    assert json.loads((run / "model.json").read_text())["class_names"] == sorted(CLASSES)
    assert set(vggjax.read_weights(run / "model.safetensors")) >= {"block1_conv1", "predictions"}
    found = json.loads((run / "eval.json").read_text())
    rows = read_csv(run / "predictions.csv")
    assert found["split"] == "test" and len(rows) == found["num_examples"] > 0
    assert np.mean([row["correct"] == "1" for row in rows]) == pytest.approx(found["accuracy"])
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (run / "plots").iterdir())
    assert len(list((run / "plots").iterdir())) >= 2
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2 and "薔薇" in page


def test_evaluating_another_split_keeps_the_test_metrics(trained, capsys):
    before = Path("runs/first/eval.json").read_bytes()
    codes = {}
    for split in ("train", "val"):
        codes[split] = main(["evaluate", "--workdir", "runs/first", "--split", split])
        printed = capsys.readouterr()
        found = json.loads(Path(f"runs/first/eval-{split}.json").read_text())
        assert f"{found['num_examples']} {split} images classified correctly" in printed.out
        named = "vggjax: left out: daisy/bad.jpg: not an image\n"
        assert printed.err == (named if codes[split] == 3 else "")
    assert set(codes.values()) == {0, 3}, "the unreadable image lies in one of the two"
    assert Path("runs/first/eval.json").read_bytes() == before


def test_predict_classifies_images_and_leaves_out_unreadable_ones(trained, capsys):
    assert main("predict flowers --workdir runs/first --top 2 --csv out.csv".split()) == 3
    printed = capsys.readouterr()
    assert printed.err == "vggjax: left out: flowers/daisy/bad.jpg: not an image\n"
    assert "flowers/daisy/00.png" in printed.out
    rows = read_csv(Path("out.csv"))
    columns = ["path", "class1", "probability1", "class2", "probability2", "error"]
    assert len(rows) == 31 and list(rows[0]) == columns
    errors = {row["path"]: row["error"] for row in rows if row["class1"] not in CLASSES}
    assert errors == {"flowers/daisy/bad.jpg": "not an image"}


def test_predict_uses_the_newest_run_and_prints_its_name(trained, capsys):
    assert main(["predict", "flowers/daisy/0[01].png"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "vggjax: using the newest run, runs/first\n"
    assert "daisy/01.png" in printed.out


def test_predict_without_a_readable_image_is_refused(trained, capsys):
    line = "predict flowers/daisy/bad.jpg --workdir runs/first"
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert "vggjax: error: The image cannot be used; flowers/daisy/bad.jpg" in printed.err


def test_a_finished_run_is_not_trained_again(trained, capsys):
    before = Path("runs/first/model.safetensors").read_bytes()
    assert main([*TRAIN, "--epochs", "1"]) == 3  # the image is still left out
    printed = capsys.readouterr()
    assert "is already trained" in printed.out
    assert printed.err == "vggjax: left out: daisy/bad.jpg: not an image\n"
    assert Path("runs/first/model.safetensors").read_bytes() == before


def test_a_finished_run_without_its_log_is_still_evaluated(trained, capsys):
    Path("runs/first/log.jsonl").rename("log.away")
    try:
        assert main([*TRAIN, "--epochs", "1"]) == 3
        assert json.loads(Path("runs/first/log.jsonl").read_text())["kind"] == "test"
    finally:
        Path("log.away").replace("runs/first/log.jsonl")


def test_a_resume_with_other_settings_is_refused_by_name(trained, capsys):
    assert main([*TRAIN, "--epochs", "2", "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "epochs was 1, now 2" in said and "seed was 0, now 1" in said
    assert "another --workdir" in said and said.count("\n") == 1


def test_a_resume_with_other_images_is_refused(trained, capsys):
    shutil.copy("flowers/daisy/00.png", "flowers/daisy/99.png")
    try:
        assert main([*TRAIN, "--epochs", "1"]) == 2
        train_said = capsys.readouterr().err
        assert main(["evaluate", "--workdir", "runs/first"]) == 2
        evaluate_said = capsys.readouterr().err
    finally:
        Path("flowers/daisy/99.png").unlink()
    assert "is not the one that runs/first was trained on" in train_said
    assert "flowers is not the one that runs/first was trained on" in evaluate_said
    assert train_said.count("\n") == evaluate_said.count("\n") == 1
