"""The codes of errors that scripts rely on, and where the command line puts them."""

import ast
import pickle
from pathlib import Path

import pytest

from vggjax.cli.main import main
from vggjax.errors import CODES, ConfigError, WeightsError, one_line_message

PACKAGE = Path(__file__).parents[1] / "vggjax"


def codes_given() -> dict[str, str]:
    """Maps every code that is written in the package to a place where it stands."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                either = [node.value, *ast.iter_child_nodes(node.value)]  # of an `if`
                for value in either if isinstance(node.value, ast.IfExp) else either[:1]:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        found[value.value] = f"{path.name}:{node.value.lineno}"
    return found


def test_every_code_that_is_given_is_in_the_documented_list():
    assert {c: where for c, where in codes_given().items() if c not in CODES} == {}


def test_every_refusal_of_the_weights_room_has_a_code():
    for path in (PACKAGE / "weights").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "WeightsError":
                given = [keyword.arg for keyword in node.keywords]
                assert "code" in given, f"{path.name}:{node.lineno} gives no code"


def test_the_code_stands_behind_the_one_line():
    error = WeightsError("w.h5: two\nlines", code="E_SHAPE")
    assert one_line_message(error) == "w.h5: two lines [E_SHAPE]"
    assert one_line_message(WeightsError("no more")) == "no more [E_WEIGHTS]"
    assert one_line_message(ConfigError("a setting")) == "a setting"
    assert pickle.loads(pickle.dumps(error)).code == "E_SHAPE"


def test_the_command_line_prints_the_code_last(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "gone.h5"), str(tmp_path / "b.h5")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith("[E_FILE]\n")


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_one_word_and_says_what_it_stands_for(code):
    assert code.startswith("E_") and code.isupper() and len(CODES[code]) > 20
