"""The command line: exit codes, and one line for each mistake."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.networks import random_weights
from support.tiny_run import make_images

import vggjax
from vggjax.cli.main import COMMANDS, main
from vggjax.models.head import Head
from vggjax.training.config import Config


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to a folder with everything that a user can name by mistake."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.jpg").write_text("no image\n")
    Path("empty.h5").write_bytes(b"")
    make_images(Path("flowers"), each=3)
    return tmp_path


def refusal(capsys, line: str) -> str:
    """Return the one line on stderr of a command that is refused."""
    code = main(line.split())
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, ""), f"{line}: {code}, {printed}"
    assert printed.err.startswith("vggjax: error: ") and printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err and "──" not in printed.err and "--- " not in printed.err
    return printed.err


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
def test_every_command_has_help(capsys, command):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: vggjax {command}") and "--help" in printed
    assert not re.search(r"\{None\}|\bNone\b|\|", printed), printed
    for entry in re.findall(r"^  (\S.*)\n  \S", printed, re.MULTILINE):
        assert "  " in entry, f"{command}: {entry} has no text"


def test_the_help_of_train_has_twelve_settings_with_a_folders_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    entries = re.findall(r"^  (?:DATA, )?--([\w-]+)", printed, re.MULTILINE)
    assert len(entries) == 12 and printed.startswith("usage: vggjax train [DATA]")
    assert "for VGG. [224]" in printed and "[vgg16]" in printed and "[imagenet]" in printed
    main(["train", "--help", "--recipe", "flowers"])
    assert "for VGG. [200]" in capsys.readouterr().out


def test_all_settings_of_train_are_in_its_whole_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["train", "--help-all"]) == 0
    entries = re.findall(r"^  (?:DATA, )?--([\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert entries == [field.name.replace("_", "-") for field in dataclasses.fields(Config)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", "Unknown command 'trian'. Did you mean 'train'?"),
        ("--bogus", "Choices: train, evaluate, report, predict, embed"),
        # A missing file or folder
        ("train --dataset ./gone", "There is no folder 'gone'."),
        ("train --dataset flowrs", "Did you mean 'flowers'?"),
        ("train --dataset flowers --weights gone.h5", "There is no weight file gone.h5."),
        ("train --dataset flowers --weights gone/h5", "There is no weight file gone/h5."),
        ("evaluate --workdir gone", "gone is not a run folder"),
        ("predict gone.jpg", "gone.jpg: no such file or folder"),
        ("predict flower", "did you mean 'flowers'?"),
        ("predict no*.jpg", "no*.jpg: no file matches."),
        ("predict text.jpg", "There is no finished run in runs/."),
        ("predict flowers --workdir gone", "There is no run folder gone"),
        ("predict flowers --weights gone.h5 --model vgg16", "There is no weight file gone.h5."),
        ("convert gone.h5 new.h5", "There is no file gone.h5."),
        ("convert empty.h5 gone/new.h5", "There is no folder gone."),
        # A wrong name
        ("train --dataset tf_flower", "Did you mean 'tf_flowers'?"),
        ("train --dataset flowers --model vgg61", "Unknown model 'vgg61'. Did you mean 'vgg1"),
        ("train --dataset flowers --weights imagnet", "Did you mean 'imagenet'?"),
        ("train --dataset flowers --weights none --unfreeze blok5", "Did you mean 'block5'?"),
        ("train --recipe flower", "Did you mean 'flowers'?"),
        ("train --optimizer adamm", "takes one of adam, nadam, rmsprop, sgd; got 'adamm'."),
        ("evaluate --workdir empty --split tset", "Did you mean 'test'?"),
        ("predict flowers --weights text.jpg --model vgg61", "Unknown model 'vgg61'."),
        ("convert empty.h5 new.ckpt", "got 'new.ckpt'. Choices: .safetensors, .weights.h5, .h5"),
        ("summary vgg61", "Unknown model 'vgg61'."),
        ("summary vgg16 --unfreeze blok5", "Did you mean 'block5'?"),
        # An empty folder or file
        ("train --dataset empty", "empty has no class folders."),
        ("train --dataset flowers --model tiny --weights empty.h5", "is empty."),
        ("evaluate --workdir empty", "empty is not a run folder"),
        ("predict empty", "empty: the folder has no images"),
        ("predict flowers --workdir empty", "empty holds no finished model"),
        ("convert empty new.h5", "empty is a folder; expected a weight file"),
        ("convert empty.h5 new.h5", "is empty."),
        # A text file that is called an image
        ("train --dataset text.jpg", "text.jpg is a file, not a folder."),
        ("train --dataset flowers --model tiny --weights text.jpg", "is not a weight file."),
        ("evaluate --workdir text.jpg", "text.jpg is not a run folder"),
        ("convert text.jpg new.h5", "is not a weight file."),
        ("summary text.jpg", "Unknown model 'text.jpg'."),
        # A wrong flag or value
        ("train --epoch 3", "options: --epoch 3. Did you mean --epochs? See vggjax train --help."),
        ("train --epochs three", "--epochs takes None|INT; got 'three'."),
        ("train --batch-size three", "--batch-size takes INT|{auto}; got 'three'."),
        ("train --epochs", "--epochs takes None|INT; got nothing."),
        ("train --epochs 0", "--epochs must be above 0; got 0."),
        ("train --split a,b,c", "Unknown split in --split 'a'. Choices: train."),
        ("train --epochs 1 flowers", "Did you mean --dataset flowers?"),
        ("train flowers --dataset empty", "--dataset is given twice, 'flowers' and 'empty'."),
        ("train tiny", "Unknown dataset 'tiny': no such folder and no tfds dataset of that name."),
        # As other tools spell it
        ("train --lr 0.1", "Did you mean --learning-rate? See"),
        ("train --lr=0.1 --bs 8", "--learning-rate for --lr and --batch-size for --bs? See"),
        ("train --imgsz 64", "Did you mean --image-size? See"),
        ("train --data flowers", "Did you mean --dataset? See"),
        ("train --wd 0.1", "Did you mean --weight-decay? See"),
        ("train --resume", "The same command with the same --workdir resumes. See"),
        ("train --zzz 1", "Unrecognized options: --zzz 1. See"),
        ("export runs/first", "Missing: OUT. See vggjax export --help."),
        ("export --zzz x.onnx", "Unrecognized option: --zzz. See vggjax export --help."),
        ("export runs/first --zzz x.onnx", "Unrecognized option: --zzz. See"),
        ("export empty out.mlmodel", "must end in .onnx, .stablehlo"),
        ("test", "Unknown command 'test'. Did you mean 'evaluate'?"),
        ("evaluate runs/first", "Missing: --workdir. Did you mean --workdir runs/first? See"),
        ("evaluate --run runs/first", "Missing: --workdir. Did you mean --workdir for --run? See"),
        ("predict --image text.jpg", "Images are given without a flag"),
        ("evaluate", "Missing: --workdir. See vggjax evaluate --help."),
        ("evaluate --workdir empty --splt val", "Did you mean --split?"),
        ("evaluate --workdir empty --batch-size x", "--batch-size takes None|INT; got 'x'."),
        ("evaluate --workdir empty --batch-size 0", "--batch-size must be above 0; got 0."),
        ("predict", "No images were named."),
        ("predict flowers --top 0", "--top must be above 0; got 0."),
        ("predict flowers --weights text.jpg", "--weights needs --model"),
        ("convert empty.h5", "Missing: DST."),
        ("convert empty.h5 new.h5 --force", "Unrecognized option: --force."),
        ("summary vgg16 --image-size 16", "32 px or more; got 16 px."),
        ("summary vgg16 --no-include-topp", "Did you mean --no-include-top?"),
        # Data: looking at it, drawing it, cutting it
        ("doctor gone", "Unknown dataset 'gone': no such folder and no tfds dataset of that name."),
        ("doctor ./gone.csv", "There is no file"),
        ("doctor", "Missing: DATA."),
        ("doctor flowers --html gone/sheet.html", "--html must be a file in an existing folder"),
        ("doctor flowers --fix flowers/clean", "flowers/clean is inside the dataset"),
        ("doctor digits --fix clean", "--fix copies files, and digits has none of its own"),
        ("doctor flowers --fix empty/../flowers", "is inside the dataset"),
        ("augment-preview flowers", "Missing: OUT."),
        ("augment-preview gone out.png", "Unknown dataset 'gone'"),
        ("augment-preview flowers flowers/out.png", "is inside the dataset"),
        ("augment-preview flowers out.png --image-size 9", "--image-size must be from 32 to 1024"),
        ("doctor flowers --html flowers/out.html", "is inside the dataset"),
        ("train --horizontal-flip True", "A switch takes no value"),
        ("train --rescale 1/255", "--preprocess unit"),
        ("train --dataset flowers --weights none --split train[:70%],train[70%:]", "is ordered by"),
        ("augment-preview flowers empty", "must be a file in an existing folder"),
        ("augment-preview flowers out.gif", "must end in .png"),
        ("augment-preview flowers gone/out.png", "must be a file in an existing folder"),
        ("augment-preview flowers out.png --augment filp", "Did you mean 'flip'?"),
        ("augment-preview flowers out.png --rows 0", "--rows must be from 1"),
        ("train --zoom-range 1 2 3", "--zoom-range must be"),
        ("train --rotation-range -5", "--rotation-range"),
        ("train --fill-mode neerest", "takes one of nearest, reflect, wrap, constant"),
        ("train --cross-validate 1", "--cross-validate must be 0, or at least 2 folds; got 1."),
        ("train --class-weights balance", "takes one of none, balanced"),
        ("train --duplicates far", "takes one of near, exact, ignore"),
        ("train --dataset flowers --weights none --cross-validate 9", "Too few distinct images"),
        ("train --dataset flowers --weights none --split train[:70%],train[:30%]", "overlap"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_way_out(here, capsys, line, says):
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


def test_converting_through_every_format_keeps_every_bit(here, capsys):
    weights = random_weights("tiny", Head("gap", outputs=7))
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
    assert done.stderr == "vggjax: error: There is no file gone.h5. [E_FILE]\n"
