"""benchmarks/lessons.py: runs go on after a kill, and a table shows only what was measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("benchmarks", reason="the tests are not run from the repository's folder")
from benchmarks import lessons, tables
from vggjax.training.recipes import RECIPES

PAGE = "".join(
    f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("lessons", "machine", "commands")
)
OVERVIEW = (
    "<!-- lessons -->\n| recipe | what | author | here |\n|---|---|---|---|\n{}\n<!-- /lessons -->"
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(PAGE)
    rows = "\n".join(f"| `{name}` | what | | old |" for name in lessons.LESSONS)
    (tmp_path / "docs" / "lessons.md").write_text(OVERVIEW.format(rows))
    return tmp_path


def record(name, seed=0, **changes):
    return {
        "name": name, "seed": seed, "command": f"train {name}", "stand_in": "", "data": "photos",
        "remark": "", "wall_s": 10.0, "cpu_s": 12.0, "peak_mb": 700.0, "load": [0.1, 2.0],
        "processor": "2 cores", "versions": {"jax": "1"}, "date": "2026-01-01", "accuracy": 0.9,
        "interval": [0.85, 0.94], "splits": [50, 25, 25], "epochs": 2, "val": [0.1, 0.2],
    } | changes  # fmt: skip


def row_of(page, name):
    return re.search(rf"^\| `{name}` \|.*$", page.read_text(), re.MULTILINE)[0]


def test_a_seed_is_a_process_of_its_own_and_is_not_run_twice(root, monkeypatch, capsys):
    few = lessons.Lesson((lessons.Data("digits", flags="--split 0.04,0.03,0.93"),), 1, "--epochs 1")
    monkeypatch.setitem(lessons.LESSONS, "mnist-cnn", few)
    planned, missing = lessons.plan(["mnist-cnn"], root, None, root / "work")
    assert not missing
    killed = root / "work" / "mnist-cnn-0"
    killed.mkdir(parents=True)
    (killed / "config.json").write_text("{")  # of a killed run: it starts anew
    assert lessons.run_all(planned, seeds=1, root=root) == []
    (measured,) = tables.read_records(root / "work" / "results.jsonl")
    evaluation = json.loads((killed / "eval.json").read_text())
    assert measured["accuracy"] == evaluation["accuracy"] and sum(measured["splits"]) == 1797
    assert measured["epochs"] == 1 and measured["cpu_s"] > 0 and measured["peak_mb"] > 50
    assert "mnist-cnn, seed 0" in capsys.readouterr().out
    assert measured["command"].endswith("--seed 0 --split 0.04,0.03,0.93 --epochs 1")

    monkeypatch.setattr(lessons, "run_process", None)  # would fail
    lessons.run_all(planned, seeds=1, root=root)
    assert capsys.readouterr().out == ""
    assert f"{100 * measured['accuracy']:.1f} %" in row_of(
        root / "docs" / "lessons.md", "mnist-cnn"
    )


def test_a_failed_seed_is_reported_and_the_others_run(root, monkeypatch):
    def fail_once(arguments, output):
        monkeypatch.setattr(lessons, "run_seed", lambda lesson, seed: record(lesson.name, seed))
        raise SystemExit("ended with 2")

    monkeypatch.setattr(lessons, "run_process", fail_once)
    (root / "cifar10").mkdir()
    names = ["cifar10-cnn", "cifar10-cnn-wide"]
    planned, _ = lessons.plan(names, root, Path("base.h5"), root / "work")
    assert lessons.run_all(planned, seeds=1, root=root) == ["ended with 2"]
    assert "90.0 %" in row_of(root / "docs" / "results.md", "cifar10-cnn-wide")


def test_long_lessons_and_stand_ins_have_one_seed(root, monkeypatch):
    monkeypatch.setattr(lessons.os, "sched_getaffinity", lambda _: {0, 1})
    times = {"cifar10-cnn": 60, "cnn-conv": 600, "fruits": 1}  # of the processor, on two cores
    stand_in = {"fruits": "flowers"}

    def run(lesson, seed):
        more = dict(cpu_s=times[lesson.name], stand_in=stand_in.get(lesson.name, ""))
        return record(lesson.name, seed, **more)

    monkeypatch.setattr(lessons, "run_seed", run)
    for folder in ("cifar10", "flowers"):
        (root / folder).mkdir()
    planned, _ = lessons.plan(list(times), root, Path("base.h5"), root / "work")
    lessons.run_all(planned, seeds=3, root=root)
    ran = [(r["name"], r["seed"]) for r in tables.read_records(root / "work" / "results.jsonl")]
    assert sorted(ran) == [("cifar10-cnn", 0), ("cifar10-cnn", 1), ("cifar10-cnn", 2),
                           ("cnn-conv", 0), ("fruits", 0)]  # fmt: skip


def test_every_lesson_with_training_is_listed_and_what_lacks_data_is_named(tmp_path):
    authored = {name for name, recipe in RECIPES.items() if recipe.source != "this package"}
    assert set(lessons.LESSONS) == authored
    planned, missing = lessons.plan(list(lessons.LESSONS), tmp_path, None, tmp_path)
    assert [p.name for p in planned] == ["mnist-cnn"] and planned[0].stand_in
    assert "none of cifar10 is in" in missing["cifar10-cnn"]


def test_commands_name_no_folder_of_the_machine(tmp_path):
    for folder in ("flowers", "breeds", "cifar10"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "flowers" / "1.jpg").touch()
    names = [name for name in lessons.LESSONS if name != "classify"]
    weights = tmp_path / "base.h5"
    for planned in lessons.plan(names, tmp_path / "data", weights, tmp_path / "work")[0]:
        assert str(tmp_path) not in " ".join(planned.arguments(0, shown=True))
        assert str(tmp_path) in " ".join(planned.arguments(0))


def test_a_stand_in_shows_no_accuracy_and_other_rows_stay(root):
    records = [record("fruits", stand_in="flowers"), record("cifar10-cnn")]
    before = row_of(root / "docs" / "lessons.md", "cnn-conv")
    lessons.write_tables(records, root=root)
    for page in (root / "docs" / "lessons.md", root / "docs" / "results.md"):
        row = row_of(page, "fruits")
        assert "stand-in: flowers" in row and "90" not in row
        assert "90.0 % (85.0-94.0, of its images)" in row_of(page, "cifar10-cnn")
    assert row_of(root / "docs" / "lessons.md", "cnn-conv") == before
    once = row_of(root / "docs" / "results.md", "cifar10-cnn")
    lessons.write_tables([record("cnn-conv")], root=root)
    assert row_of(root / "docs" / "results.md", "cifar10-cnn") == once
    assert "train cifar10-cnn    # cifar10-cnn" in (root / "docs" / "results.md").read_text()


def test_the_page_names_the_lessons_that_ran_on_another_processor():
    measured = {name: [record(name)] for name in "abc"} | {"d": [record("d", processor="1 core")]}
    assert lessons.processors_of(measured) == "2 cores; `d` on 1 core"


def test_only_seeds_of_the_latest_command_count():
    records = [record("a", s, command="old") for s in (0, 1)] + [record("a", 0), record("b", 0)]
    assert [r["command"] for r in lessons.records_of(records, "a")] == ["train a"]
    again = [record("a", 1, accuracy=0.1), record("a", 0), record("a", 1, accuracy=0.2)]
    assert [r["accuracy"] for r in lessons.records_of(again, "a")] == [0.9, 0.2]


def test_the_interval_is_students_and_within_0_and_100_percent():
    values = [0.5, 0.52, 0.57]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert tables.percent(values) == f"53.0 % ({100 * low:.1f}-{100 * high:.1f})"
    assert tables.percent([0.99, 1.0, 0.97]).endswith("-100.0)")
    assert tables.percent([0.5]) == "50.0 %"


def test_a_line_that_a_kill_cut_short_is_no_record(tmp_path):
    path = tmp_path / "results.jsonl"
    tables.append_record(path, {"seed": 0})
    path.write_text(path.read_text() + '{"seed": 1, "acc')
    assert tables.read_records(path) == [{"seed": 0}]
    tables.append_record(path, {"seed": 2})
    assert tables.read_records(path) == [{"seed": 0}, {"seed": 2}]
