"""The same data in another place is the same data; other labeled data is evaluated as unseen."""

import json
import shutil
from pathlib import Path

import pytest
from support.tiny_run import CLASSES, make_images, make_run

from vggjax.cli.main import main
from vggjax.data.sources.open import open_source
from vggjax.data.sources.options import DatasetOptions
from vggjax.errors import ConfigError, DataError
from vggjax.evaluation.evaluate import evaluate
from vggjax.training.config import read_config
from vggjax.training.run_dir.contents import Contents, write_contents
from vggjax.training.trainer import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder with a run, run/, whose images were moved from flowers/ to new/flowers/."""
    root = tmp_path_factory.mktemp("finished")
    make_run(root / "run", make_images(root / "flowers"))
    evaluate(root / "run")
    (root / "new").mkdir()
    (root / "flowers").rename(root / "new" / "flowers")
    return root


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """Return a copy of that folder, which is the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_json(path):
    return json.loads(Path(path).read_text())


def test_moved_data_is_found_by_its_new_place(folder, capsys):
    before = read_json("run/eval.json")
    with pytest.raises(DataError, match="If the data has moved, give .* `dataset`"):
        evaluate("run")
    assert main(["evaluate", "--workdir", "run", "--dataset", "new/flowers"]) == 0
    after = read_json("run/eval.json")
    assert after["confusion"] == before["confusion"]
    assert after["dataset"] == str(folder / "new" / "flowers")  # from any working directory
    assert main(["report", "run", "--dataset", "new/flowers"]) == 0
    assert "images cannot be shown" not in Path("run/report.html").read_text()
    assert not Path("run/evaluations").exists()


def test_a_finished_run_is_not_trained_again_and_remembers_where_its_data_lies(folder, capsys):
    config = read_config("run")
    moved = {"dataset": "new/flowers", "workdir": "run"}
    train(type(config).from_json(json.dumps(json.loads(config.to_json()) | moved)))
    assert "run is already trained" in capsys.readouterr().out
    assert evaluate("run")["dataset"] == str(folder / "new" / "flowers")


@pytest.mark.parametrize("command", [["report", "run"], ["evaluate", "--workdir", "run"]])
def test_a_part_of_the_images_in_another_place_is_another_dataset(folder, capsys, command):
    contents = Contents(open_source("new/flowers"))
    contents.add_all(1, None)
    write_contents(Path("run"), contents.states())
    Path("new/flowers/daisy/00.png").unlink()
    before = [Path("run", name).read_bytes() for name in ("eval.json", "config.json")]
    assert main([*command, "--dataset", "new/flowers"]) == 2
    assert "trained on: gone: daisy/00.png" in capsys.readouterr().err
    assert [Path("run", name).read_bytes() for name in ("eval.json", "config.json")] == before


@pytest.mark.parametrize("command", [["report", "run"], ["evaluate", "--workdir", "run"]])
def test_a_changed_image_in_the_new_place_is_refused(folder, capsys, command):
    Path("new/flowers/daisy/00.png").rename("new/flowers/daisy/other.png")
    before = Path("run/eval.json").read_bytes()
    assert main([*command, "--dataset", "new/flowers"]) == 2
    assert "new: daisy/other.png; gone: daisy/00.png" in capsys.readouterr().err
    assert Path("run/eval.json").read_bytes() == before


def test_other_data_is_evaluated_in_a_folder_of_its_own(folder, capsys):
    make_images(folder / "field", ("薔薇", "daisy", "dasy"), each=5)
    for path in list(Path("field").rglob("*.png")):
        path.rename(path.with_name(f"field-{path.name}"))
    before = Path("run/eval.json").read_bytes()
    assert main(["evaluate", "--workdir", "run", "--dataset", "field"]) == 0
    printed = capsys.readouterr().out
    assert "field is not the run's own data: 10 images are evaluated" in printed
    assert "Left out: 5 images of classes that the model does not have: 'dasy' (did" in printed
    assert "No images of '<i>rose & co'." in printed and "overestimated" not in printed
    assert Path("run/eval.json").read_bytes() == before
    (results,) = Path("run/evaluations").iterdir()
    result = read_json(results / "eval.json")
    support = {row["name"]: row["support"] for row in result["per_class"]}
    assert support == {"daisy": 5, "<i>rose & co": 0, "薔薇": 5}
    assert result["class_names"] == list(sorted(CLASSES, key=list(support).index))


def test_names_of_training_images_in_other_data_are_pointed_out(folder, capsys):
    evaluate("run", dataset="new/flowers", split="all")
    printed = capsys.readouterr().out
    assert "18 of the images have names of images that the model was trained on" in printed
    assert "of 30 images classified" in printed


def test_other_data_is_read_with_its_own_options(folder):
    rows = [f"new/flowers/{path.parent.name}/{path.name},daisy" for path in
            sorted(Path("new/flowers/daisy").iterdir())]  # fmt: skip
    Path("table.csv").write_text("\n".join(["file,kind,path", *(f"{row},x" for row in rows)]))
    options = DatasetOptions(path_column="file", label_column=("kind",))
    result = evaluate("run", dataset="table.csv", options=options)
    assert [sum(row) for row in result["confusion"]] == [0, 10, 0]


def test_other_data_without_the_split_or_the_classes_is_refused(folder):
    make_images(folder / "cars", ("bus", "van"), each=5)
    with pytest.raises(ConfigError, match="cars has none of the model's classes, .* are bus, van"):
        evaluate("run", dataset="cars")
    make_images(folder / "field" / "train", CLASSES[:2], each=12)
    make_images(folder / "field" / "test", CLASSES[:2], each=4)
    with pytest.raises(ConfigError, match="Unknown split 'val'.* Choices: train, test, all"):
        evaluate("run", dataset="field", split="val")
    assert evaluate("run", dataset="field")["num_examples"] == 8
