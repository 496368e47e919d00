"""The command line as a user meets it: exit codes, one line for a mistake, the run folder."""

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import CLASSES, add_tiny_arch, make_pictures

import vggjax
from vggjax.cli import COMMANDS, main
from vggjax.models.arch import Arch

ROOT = Path(__file__).parents[1]
TRAIN = (
    "train --dataset flowers --model tiny --weights none --unfreeze all --image-size 32 "
    "--split 0.4,0.2,0.4 --batch-size 8 --workdir runs/first"
).split()


@pytest.fixture
def here(tmp_path, tiny_arch, monkeypatch):
    """A folder with everything that can be named by mistake."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.jpg").write_text("no picture\n")
    Path("empty.h5").write_bytes(b"")
    make_pictures(Path("flowers"), each=3)
    add_tiny_arch(monkeypatch, tiny_arch)
    return tmp_path


def refusal(capsys, line: str) -> str:
    """Gives the one line on stderr of a command that is refused."""
    code = main(line.split())
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, ""), f"{line}: {code}, {printed}"
    assert printed.err.startswith("vggjax: error: ") and printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err and "──" not in printed.err and "--- " not in printed.err
    return printed.err


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_without_a_command_the_commands_are_listed(capsys, line):
    assert main(line.split()) == 0
    printed = capsys.readouterr().out
    assert "usage: vggjax COMMAND" in printed
    assert all(f"  {command} " in printed for command in COMMANDS)


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{vggjax.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert f"usage: vggjax {command}" in printed and "--help" in printed


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", "Unknown command 'trian'. Did you mean 'train'?"),
        ("--bogus", "Choices: train, evaluate, predict, convert, summary."),
        # A missing file or folder
        ("train --dataset ./gone", "There is no folder 'gone'."),
        ("train --dataset flowrs", "Did you mean 'flowers'?"),
        ("train --dataset flowers --weights gone.h5", "There is no weight file gone.h5."),
        ("evaluate --workdir gone", "gone is no run folder"),
        ("predict gone.jpg", "No such file or folder: 'gone.jpg'."),
        ("predict flower", "Did you mean 'flowers'?"),
        ("predict no*.jpg", "No file matches 'no*.jpg'."),
        ("predict text.jpg", "No finished run lies under runs/."),
        ("predict flowers --workdir gone", "gone holds no finished model"),
        ("predict flowers --weights gone.h5 --model vgg16", "There is no weight file gone.h5."),
        ("convert gone.h5 new.h5", "There is no file gone.h5."),
        ("convert empty.h5 gone/new.h5", "There is no folder gone."),
        # A wrong name
        ("train --dataset tf_flower", "Did you mean 'tf_flowers'?"),
        ("train --dataset flowers --model vgg61", "Unknown model 'vgg61'. Did you mean 'vgg1"),
        ("train --dataset flowers --weights imagnet", "Did you mean 'imagenet'?"),
        ("train --dataset flowers --weights none --unfreeze blok5", "Did you mean 'block5'?"),
        ("train --recipe flower", "Did you mean 'flowers'?"),
        ("train --optimizer adamm", "'adam', 'nadam', 'rmsprop', 'sgd'"),
        ("evaluate --workdir empty --split tset", "Did you mean 'test'?"),
        ("predict flowers --weights text.jpg --model vgg61", "Unknown model 'vgg61'."),
        ("convert empty.h5 new.pt", "'new.pt' has none of .safetensors, .weights.h5, .h5"),
        ("summary vgg61", "Unknown model 'vgg61'."),
        ("summary vgg16 --unfreeze blok5", "Did you mean 'block5'?"),
        # An empty folder or file
        ("train --dataset empty", "empty has no class folders in it."),
        ("train --dataset flowers --model tiny --weights empty.h5", "empty.h5 is empty."),
        ("evaluate --workdir empty", "empty is no run folder"),
        ("predict empty", "The folder 'empty' has no pictures"),
        ("predict flowers --workdir empty", "empty holds no finished model"),
        ("convert empty new.h5", "empty is a folder; a weight file is wanted"),
        ("convert empty.h5 new.h5", "empty.h5 is empty."),
        # A text file that is called a picture
        ("train --dataset text.jpg", "text.jpg is a file, not a folder."),
        ("train --dataset flowers --model tiny --weights text.jpg", "is not a weight file."),
        ("evaluate --workdir text.jpg", "text.jpg is no run folder"),
        ("convert text.jpg new.h5", "text.jpg is not a weight file."),
        ("summary text.jpg", "Unknown model 'text.jpg'."),
        # A wrong flag or value
        ("train --epoch 3", "--epoch, 3. Perhaps you meant --epochs. See vggjax train --help."),
        ("train --epochs three", "--epochs takes INT; got 'three'."),
        ("train --epochs", "Missing value for argument '--epochs'."),
        ("train --epochs 0", "--epochs must be above 0; got 0."),
        ("train --split a,b,c", "three numbers such as 0.8,0.1,0.1; got 'a,b,c'."),
        ("train flowers", "Unrecognized options: flowers."),
        ("evaluate", "--workdir STR The run's folder. (required). See vggjax evaluate --help."),
        ("evaluate --workdir empty --splt val", "Perhaps you meant --split."),
        ("evaluate --workdir empty --batch-size x", "--batch-size takes {None}|INT; got 'x'."),
        ("predict", "No pictures were named."),
        ("predict flowers --top 0", "--top must be 1 or more; got 0."),
        ("predict flowers --weights text.jpg", "--weights needs --model"),
        ("convert empty.h5", "DST The file to write"),
        ("convert empty.h5 new.h5 --force", "Unrecognized options: --force."),
        ("summary vgg16 --image-size 16", "32 px or more; got image size 16."),
        ("summary vgg16 --no-include-topp", "Perhaps you meant --include-top."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_the_way_out(here, capsys, line, says):
    before = sorted(here.rglob("*"))
    assert says in refusal(capsys, line)
    assert sorted(here.rglob("*")) == before, "something was written"


def test_a_value_in_a_message_is_not_folded(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a-folder-with-a-name-that-is-longer-than-the-terminal-is-wide"
    assert f"'{name}'" in refusal(capsys, f"train --split {name}")


@pytest.mark.parametrize(
    ("line", "total"),
    [("vgg16", "138,357,544"), ("vgg16 --no-include-top", "14,714,688"), ("", "138,357,544")],
)
def test_summary_counts_the_parameters(capsys, line, total):
    assert main(["summary", *line.split()]) == 0
    printed = capsys.readouterr().out
    assert f"Total parameters: {total}" in printed
    assert "block5_conv3" in printed and ("fc1" in printed) == (total == "138,357,544")


def test_convert_goes_round_bit_for_bit(here, capsys):
    rng = np.random.default_rng(0)
    weights = {
        "block1_conv1": {"kernel": rng.normal(size=(3, 3, 3, 4)), "bias": rng.normal(size=4)},
        "predictions": {"kernel": rng.normal(size=(4, 7)), "bias": rng.normal(size=7)},
    }
    vggjax.write_weights("a.safetensors", weights)
    names = ("a.safetensors", "b.weights.h5", "c.h5", "d.safetensors")
    for src, dst in zip(names, names[1:], strict=False):
        assert main(["convert", src, dst]) == 0
        printed = capsys.readouterr().out
        assert "block1_conv1" in printed and f"{dst}: 0.0 MB" in printed
    found = vggjax.read_weights("d.safetensors")
    for layer, params in weights.items():
        for name, array in params.items():
            np.testing.assert_array_equal(found[layer][name], array.astype(np.float32))


def test_python_m_vggjax_is_the_same_command():
    command = [sys.executable, "-m", "vggjax", "convert", "gone.h5", "new.h5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vggjax: error: There is no file gone.h5.\n"


def test_train_py_is_vggjax_train():
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: vggjax train" in done.stdout and "--unfreeze" in done.stdout


# One training, and what can be done with it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains once through the command line, with one picture that cannot be read."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_arch(patch, Arch("tiny", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8)))
        patch.chdir(folder)
        make_pictures(Path("flowers"))
        Path("flowers/daisy/bad.jpg").write_text("no picture\n")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*TRAIN, "--epochs", "1"])
        yield code, out.getvalue(), err.getvalue()


def test_training_with_a_picture_that_cannot_be_read_is_done_and_names_it(trained):
    code, out, err = trained
    assert code == 3
    assert err == "vggjax: left out: daisy/bad.jpg: not an image\n"
    assert "epoch 1/1" in out and "report.html" in out


def test_a_run_folder_holds_all_that_it_promises(trained):
    run = Path("runs/first")
    assert json.loads((run / "config.json").read_text())["unfreeze"] == ["all"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (epoch,) = [line for line in log if line["kind"] == "epoch"]
    assert {"step", "train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(epoch)
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
    assert page.count("data:image/png;base64,") >= 2 and "薔薇" in page


def test_evaluate_scores_another_split_and_leaves_the_tests_figures(trained, capsys):
    before = Path("runs/first/eval.json").read_bytes()
    codes = {}
    for split in ("train", "val"):
        codes[split] = main(["evaluate", "--workdir", "runs/first", "--split", split])
        printed = capsys.readouterr()
        found = json.loads(Path(f"runs/first/eval-{split}.json").read_text())
        assert f"{found['num_examples']} {split} pictures named correctly" in printed.out
        named = "vggjax: left out: daisy/bad.jpg: not an image\n"
        assert printed.err == (named if codes[split] == 3 else "")
    assert set(codes.values()) == {0, 3}, "the unreadable picture lies in one of the two"
    assert Path("runs/first/eval.json").read_bytes() == before


def test_predict_names_pictures_and_leaves_out_what_it_cannot_read(trained, capsys):
    assert main("predict flowers --workdir runs/first --top 2 --csv out.csv".split()) == 3
    printed = capsys.readouterr()
    assert printed.err == "vggjax: left out: flowers/daisy/bad.jpg: not an image\n"
    assert "flowers/daisy/00.png" in printed.out
    rows = read_csv(Path("out.csv"))
    assert len(rows) == 30 and set(rows[0]) == {
        "path", "class1", "probability1", "class2", "probability2",
    }  # fmt: skip
    assert {row["class1"] for row in rows} <= set(CLASSES)


def test_predict_takes_the_newest_run_and_says_so(trained, capsys):
    assert main(["predict", "flowers/daisy/0[01].png"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "vggjax: using the newest run, runs/first\n"
    assert "daisy/01.png" in printed.out


def test_predict_with_nothing_readable_is_refused(trained, capsys):
    line = "predict flowers/daisy/bad.jpg --workdir runs/first"
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert "vggjax: error: The picture cannot be used; flowers/daisy/bad.jpg" in printed.err


def test_the_same_command_again_trains_no_more(trained, capsys):
    before = Path("runs/first/model.safetensors").read_bytes()
    assert main([*TRAIN, "--epochs", "1"]) in (0, 3)
    assert "is trained already" in capsys.readouterr().out
    assert Path("runs/first/model.safetensors").read_bytes() == before


def test_other_settings_for_the_same_run_are_refused_by_name(trained, capsys):
    assert main([*TRAIN, "--epochs", "2", "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "epochs was 1, now 2" in said and "seed was 0, now 1" in said
    assert "another --workdir" in said and said.count("\n") == 1


def test_other_pictures_for_the_same_run_are_refused(trained, capsys):
    shutil.copy("flowers/daisy/00.png", "flowers/daisy/99.png")
    try:
        assert main([*TRAIN, "--epochs", "1"]) == 2
        train_said = capsys.readouterr().err
        assert main(["evaluate", "--workdir", "runs/first"]) == 2
        evaluate_said = capsys.readouterr().err
    finally:
        Path("flowers/daisy/99.png").unlink()
    assert "flowers is not what runs/first was trained on" in train_said
    assert "'flowers' is not the one that runs/first was trained on" in evaluate_said
    assert train_said.count("\n") == evaluate_said.count("\n") == 1
