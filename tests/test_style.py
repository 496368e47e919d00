"""Rules that ruff does not know: names, signatures, limits, dependencies, the README."""

import ast
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import vggjax
from vggjax.cli.commands.table import COMMANDS
from vggjax.cli.main import main

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "vggjax").rglob("*.py"))
FORBIDDEN = re.compile(r"(^|_)(utils?|common|helpers?|base|misc|managers?|handlers?)$")

TWO_POSITIONAL_DEFAULTS = {
    "make_splits": "fractions and seed are what a split is a function of",
}
"""Elsewhere at most one optional argument, the function's subject, is positional."""

MODULES = {
    "yaml": "pyyaml",
    "pillow_heif": "pillow-heif",
    "prometheus_client": "prometheus-client",
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "tensorflow": "tensorflow-cpu",
    "tensorflow_datasets": "tensorflow-datasets",
}
"""Module -> its distribution, where the names differ."""

IMPORTED_BY_OTHERS = {
    "importlib-resources": "tensorflow-datasets imports it and does not declare it",
    "python-multipart": "starlette imports it to read forms and does not declare it",
}


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Yield (place, function, is a method) for the public functions of a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        public_class = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for found in node.body if public_class else [node]:
            if isinstance(found, ast.FunctionDef) and (
                not found.name.startswith("_") or (public_class and found.name == "__init__")
            ):
                where = f"{path.relative_to(ROOT)}:{found.lineno} {found.name}"
                yield where, found, public_class


def every_function() -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    for path in PACKAGE:
        yield from functions(path)


def test_a_key_is_the_first_argument_and_is_called_key():
    for where, node, is_method in every_function():
        names = [
            arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        ]
        keys = {"key", "keys"} & set(names)
        assert not keys or names[int(is_method)] in keys, f"{where}: the key comes first"
        assert "rng" not in names, f"{where}: it is called key (rngs is for nnx.Rngs alone)"


def test_options_are_keyword_only():
    for where, node, _ in every_function():
        most = 1 if node.name not in TWO_POSITIONAL_DEFAULTS else 5
        assert len(node.args.defaults) <= most, f"{where}: put options behind a *"
    known = {node.name for _, node, _ in every_function() if len(node.args.defaults) > 1}
    assert known == set(TWO_POSITIONAL_DEFAULTS), "an exception that is no longer needed"


def test_public_signatures_are_typed():
    for where, node, is_method in every_function():
        arguments = [*node.args.posonlyargs, *node.args.args][int(is_method) :]
        for arg in (*arguments, *node.args.kwonlyargs):
            assert arg.annotation is not None, f"{where}: {arg.arg} has no type"
        assert node.returns is not None or node.name == "__init__", f"{where}: returns what?"


MAX_MODULES, MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_OPTIONS = 15, 500, 60, 6, 12
"""A folder's modules, a file's lines, a function's lines, its parameters, its options after `*`."""


def beyond_limits(package: Path) -> list[str]:
    """Return what is larger than the limits, each with its place and its size."""
    beyond = []
    for folder in {path.parent for path in package.rglob("*.py")}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(modules) > MAX_MODULES:
            beyond.append(f"{folder.relative_to(package)}/: {len(modules)} modules")
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(package)
        if (lines := len(text.splitlines())) > MAX_LINES:
            beyond.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{name}:{node.lineno} {node.name}"
                if (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES:
                    beyond.append(f"{where}: {lines} lines")
                positional = [*node.args.posonlyargs, *node.args.args]
                own = sum(a.arg not in ("self", "cls") for a in positional)
                options = len(node.args.kwonlyargs)
                is_private = node.name.startswith("_") and node.name != "__init__"
                own += options if is_private else 0
                if own > MAX_PARAMETERS or options > MAX_OPTIONS:
                    beyond.append(f"{where}: {own} parameters, {options} options")
    return beyond


def test_folders_files_and_functions_keep_to_the_limits():
    assert beyond_limits(ROOT / "vggjax") == []


def test_what_is_beyond_the_limits_is_found_and_named(tmp_path):
    body = "    pass\n" * MAX_FUNCTION_LINES
    (tmp_path / "a.py").write_text(f"def f(a, b, c, d, e, f, g):\n{body}" + "\n" * MAX_LINES)
    for number in range(MAX_MODULES):
        (tmp_path / f"m{number}.py").write_text("")
    assert beyond_limits(tmp_path) == [
        "./: 16 modules",
        "a.py: 561 lines",
        "a.py:1 f: 61 lines",
        "a.py:1 f: 7 parameters, 0 options",
    ]


def test_no_module_or_class_has_a_meaningless_name():
    for path in PACKAGE:
        assert not FORBIDDEN.search(path.stem), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert not re.search(r"(Manager|Handler|Helper|Utils?)$", node.name), node.name


def test_dependencies_are_exactly_what_is_imported():
    imported = {}
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                imported.setdefault(name.split(".")[0], f"{path.relative_to(ROOT)}:{node.lineno}")
    for name in (*sys.stdlib_module_names, "vggjax", "IPython"):  # a notebook has IPython
        imported.pop(name, None)
    imported = {MODULES.get(name, name): where for name, where in imported.items()}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    collections = (
        "cuda",
        "tpu",
        "bench",
        "docs",
        "test",
        "dev",
    )  # of packages that are not imported
    lines = project["dependencies"] + [
        line for name in extras if name not in collections for line in extras[name]
    ]
    declared = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    undeclared = {name: where for name, where in imported.items() if name.lower() not in declared}
    assert undeclared == {}
    assert declared - set(map(str.lower, imported)) == set(IMPORTED_BY_OTHERS)
    assert all(">=" in line for line in lines), "each has a tested lower bound"


# The commands of the README and the pages in docs/, against the real parsers


SHELL = re.compile(r" *(\$ )?(\S*/)?(python3?|vggjax|uv|pip|git|cd|tar) ")
"""The beginning of a shell command."""


def pages() -> str:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n\n".join(path.read_text(encoding="utf-8") for path in paths)


def fenced(*languages: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", pages(), re.MULTILINE | re.DOTALL)
    return [body for language, body in blocks if language in languages]


def shell_lines() -> list[str]:
    """Return the shell commands of the pages, from fenced and indented blocks."""
    unfenced = re.sub(r"^```.*?^```", "", pages(), flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    .*", unfenced, re.MULTILINE)
    blocks = "\n".join([*fenced("bash", "sh", "shell", "console", "text", ""), *indented])
    return [line for line in blocks.replace("\\\n", " ").splitlines() if SHELL.match(line)]


def own_commands(line: str) -> Iterator[list[str]]:
    """Yield the arguments of each `vggjax`, `python -m vggjax` and `python train.py` command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    words = [*lexer, ";"]
    while words:
        end = next(i for i, word in enumerate(words) if set(word) <= set("&;|"))
        command, words = words[:end], words[end + 1 :]
        for i, word in enumerate(command):
            if Path(word).name == "vggjax" and not word.endswith("/"):
                yield command[i + 1 :]
            elif Path(word).name == "train.py" and "python" in command[i - 1]:
                yield ["train", *command[i + 1 :]]


class Parsed(Exception):
    """The command line was parsed; the work would begin here."""


@pytest.fixture
def parses(monkeypatch, capsys):
    def arrived(*args, **kwargs):
        raise Parsed

    for place in (
        "vggjax.api.fit",
        "vggjax.evaluation.estimate.estimate",
        "vggjax.cli.launch.run_processes",
        "vggjax.evaluation.evaluate.evaluate",
        "vggjax.evaluation.other_data.open_evaluation",
        "vggjax.report.report.write_report",
        "vggjax.report.compare.write_comparison",
        "vggjax.evaluation.predict_files.predict_command",
        "vggjax.features.embed_files.embed_command",
        "vggjax.features.similar.similar_command",
        "vggjax.features.stylize.stylize_command",
        "vggjax.weights.convert.convert",
        "vggjax.cli.tables.summarize_model",
        "vggjax.report.augment_preview.write_preview",
        "vggjax.data.quality.doctor.examine",
        "vggjax.export.export.export_run",
        "vggjax.export.card.write_card",
        "vggjax.cli.commands.runs.choose_recipe",
        "vggjax.serve.command.run_service",
        "vggjax.serve.command.run_demo",
        "vggjax.export.push.push_run",
    ):
        monkeypatch.setattr(place, arrived)

    def check(arguments: list[str]) -> None:
        try:
            code = main(arguments)
        except Parsed:
            return
        except SystemExit as end:  # --help
            code = end.code
        said = capsys.readouterr().err
        assert code == 0, f"`vggjax {shlex.join(arguments)}` is refused: {said}"

    return check


def test_every_command_of_the_pages_parses(parses):
    commands = [arguments for line in shell_lines() for arguments in own_commands(line)]
    assert {"train", "predict"} <= {arguments[0] for arguments in commands if arguments}
    for arguments in commands:
        parses(arguments)


def test_every_flag_in_the_pages_exists(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    flags = {}
    for command in COMMANDS:
        main([command, "--help-all"])
        flags[command] = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    text = re.sub(r"^```.*?^```", "", pages(), flags=re.M | re.S)
    for span in re.findall(r"`([^`\n]+)`", text):
        named = set(re.findall(r"(?<!\S)--[a-z][\w-]*", span))
        if found := re.match(r"(?:vggjax|python -m vggjax) (\w+)", span):
            assert found[1] in COMMANDS, f"`{span}`: no such command"
            assert named <= flags[found[1]], f"`{span}`"
        elif span.startswith(("--", "python train.py")):
            assert named <= set().union(*flags.values()), f"`{span}`"


def test_an_unknown_flag_is_found(parses):
    for line in ("python train.py --epoch 3", "x && vggjax predict a.jpg --topp 5 | head"):
        (arguments,) = own_commands(line)
        with pytest.raises(AssertionError, match="is refused"):
            parses(arguments)


def test_the_pages_use_only_public_names_and_their_arguments():
    for block in fenced("python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "vggjax":
                missing = [a.name for a in node.names if not hasattr(vggjax, a.name)]
                assert not missing, f"vggjax has no {missing}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "vggjax":
                assert hasattr(vggjax, node.attr), f"vggjax has no {node.attr}"
            if isinstance(node, ast.Call) and re.fullmatch(r"vggjax\.\w+", ast.unparse(node.func)):
                called = getattr(vggjax, node.func.attr)
                parameters = inspect.signature(called).parameters
                given = {keyword.arg for keyword in node.keywords}
                assert given <= set(parameters), f"{ast.unparse(node)}: no such argument"


def test_the_pages_have_no_placeholders():
    assert not re.findall(r"@[A-Z]+@|TBD|\?\?\?", pages())


def test_every_link_of_the_pages_leads_to_a_file():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    assert set(re.findall(r"[\w-]+\.md", navigation)) == {
        p.name for p in (ROOT / "docs").glob("*.md")
    }
