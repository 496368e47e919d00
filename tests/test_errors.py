"""The stable codes of errors, and how the command line prints them."""

import ast
import pickle
from pathlib import Path

from vggjax.cli.main import main
from vggjax.errors import (
    CODES,
    ConfigError,
    DataError,
    WeightsError,
    join_names,
    one_line_message,
    printable,
    unknown_name,
)

PACKAGE = Path(__file__).parents[1] / "vggjax"


def codes_in_use() -> dict[str, str]:
    """Map every code that the package passes as `code=` to one place that does."""
    places = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                branches = [node.value, *ast.iter_child_nodes(node.value)]  # of a conditional
                for value in branches if isinstance(node.value, ast.IfExp) else branches[:1]:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        places[value.value] = f"{path.name}:{node.value.lineno}"
    return places


def test_the_codes_in_use_are_the_documented_ones():
    codes = codes_in_use()
    assert {code: place for code, place in codes.items() if code not in CODES} == {}
    assert set(CODES) - set(codes) <= {"E_WEIGHTS"}, "documented, and used nowhere"


def test_every_weights_error_has_a_code():
    for path in (PACKAGE / "weights").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "WeightsError":
                keywords = [keyword.arg for keyword in node.keywords]
                assert "code" in keywords, f"{path.name}:{node.lineno} passes no code"


def test_a_message_is_one_line_with_the_code_last():
    error = WeightsError("w.h5: two\nlines", code="E_SHAPE")
    assert one_line_message(error) == "w.h5: two lines [E_SHAPE]"
    assert one_line_message(WeightsError("no more")) == "no more [E_WEIGHTS]"
    assert one_line_message(ConfigError("a setting")) == "a setting"
    assert pickle.loads(pickle.dumps(error)).code == "E_SHAPE"


def test_the_command_line_prints_the_code_last(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "missing.h5"), str(tmp_path / "b.h5")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.endswith("[E_FILE]\n")


def test_the_command_line_prints_a_field_as_its_flag(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise DataError("`num_threads` and `data_dir` are flags; `no_such_field` is none")

    monkeypatch.setattr("vggjax.data.quality.doctor.examine", refuse)
    assert main(["doctor", "digits"]) == 2
    message = capsys.readouterr().err
    assert "--num-threads and --data-dir are flags; `no_such_field` is none" in message


def test_an_unknown_name_gets_the_nearest_choice_and_all_choices():
    message = unknown_name("layer", "BLOK5", ["block4", "block5"], hint=" Or none.")
    expected = "Did you mean 'block5'? Choices: block4, block5. Or none."
    assert message == f"Unknown layer 'BLOK5'. {expected}"
    assert "Did you mean" not in unknown_name("layer", "zzz", ["block4"])


def test_many_names_are_cut_and_counted():
    assert join_names("abc", most=3) == "a, b, c"
    assert join_names("abcde", most=3) == "a, b, c and 2 more"
    assert join_names(map(str, range(2000)), most=1) == "0 and 1,999 more"


def test_what_a_terminal_cannot_print_is_escaped():
    assert printable("a\x1b[31m\r\n\udcff薔") == "a\\x1b[31m\\r\\n\\udcff薔"
    assert printable(Path("a b")) == "a b"
