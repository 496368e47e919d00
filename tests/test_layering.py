"""Rooms are ordered: a module imports from its own room and those before it, never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vggjax"
ROOMS = (
    "errors",
    "atomic",
    "download",
    "csv_text",
    "models",
    "weights",
    "data",
    "training",
    "evaluation",
    "report",
    "features",
    "export",
    "serve",
    "api",
    "cli",
)
"""The order of the subpackages: a module imports from its own and from those before it."""

ENTRIES = ("__init__", "__main__")
"""The package's entry points, which import from any room and are imported by none."""


def room(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def file_of(dotted: str, package: Path) -> str | None:
    """Return the file of the module `vggjax.x.y`, None if there is no such module."""
    parts = dotted.split(".")[1:]
    for path in (Path(*parts).with_suffix(".py") if parts else None, Path(*parts, "__init__.py")):
        if path and (package / path).is_file():
            return path.as_posix()
    return None


def imports(package: Path) -> dict[str, set[str]]:
    """Map each file to the files of the package that it imports, also inside functions."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        found[file] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}:{node.lineno} imports relatively; name the module"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                # `from vggjax.a import b` is vggjax/a/b.py where there is such a file, else a.
                targets = [
                    node.module if file_of(name, package) is None else name for name in names
                ]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            own = [name for name in targets if name.split(".")[0] == "vggjax"]
            found[file] |= {target for name in own if (target := file_of(name, package))}
    return found


def broken_rules(package: Path) -> list[str]:
    graph = imports(package)
    broken = []
    for file, targets in graph.items():
        if room(file) in ENTRIES:
            continue
        for target in sorted(targets):
            if room(target) in ENTRIES or ROOMS.index(room(target)) > ROOMS.index(room(file)):
                broken.append(f"vggjax/{file} imports vggjax/{target}, of a later room")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        broken.append("imports in a circle: " + " <- ".join(f"vggjax/{f}" for f in error.args[1]))
    return broken


def test_every_module_imports_from_rooms_before_its_own_and_never_in_a_circle():
    assert broken_rules(PACKAGE) == []


def test_every_file_is_in_a_room_and_errors_imports_nothing():
    files = imports(PACKAGE)
    assert {room(file) for file in files} <= {*ROOMS, *ENTRIES}
    assert files["errors.py"] == set()


def test_an_import_of_a_later_room_inside_a_function_is_found(tmp_path):
    for name in ("models", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "models/vgg.py").write_text("def f():\n    from vggjax.data import split\n")
    (tmp_path / "data/split.py").write_text("")
    found = broken_rules(tmp_path)
    assert found == ["vggjax/models/vgg.py imports vggjax/data/split.py, of a later room"]


def test_a_circle_inside_a_room_is_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.py").write_text("import vggjax.data.b\n")
    (tmp_path / "data/b.py").write_text("from vggjax.data.a import x\n")
    (found,) = broken_rules(tmp_path)
    assert "vggjax/data/a.py" in found and "vggjax/data/b.py" in found
