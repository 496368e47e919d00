"""The package's public names load on first use, and importing the package stays cheap."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vggjax
import vggjax.features

HEAVY = ("jax", "flax", "scipy", "sklearn", "matplotlib", "tensorflow_datasets", "h5py", "orbax")
"""What only some commands need, and what takes most of the time of an import."""


def public_imports(package) -> dict[str, str]:
    """Return the names that a package's __init__.py imports for type checkers: {name: module}."""
    tree = ast.parse(inspect.getsource(package))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.asname: node.module for node in imports for alias in node.names}


@pytest.mark.parametrize("package", [vggjax, vggjax.features])
def test_every_public_name_loads_from_where_type_checkers_see_it(package):
    assert public_imports(package) == package._PLACES
    for name, module in package._PLACES.items():
        assert getattr(package, name) is getattr(sys.modules[module], name)
        assert name in dir(package)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'VGG17'"):
        vggjax.VGG17  # noqa: B018


@pytest.mark.parametrize(
    "program",
    [
        "import vggjax",
        "import vggjax; vggjax.Config",
        "import vggjax.features",
        "from vggjax.cli.main import main; main([])",
        "from vggjax.cli.main import main; main(['recipes'])",
        "import sys; sys.argv[1:] = ['train', '--help']; from vggjax.cli.main import main; main()",
        "import sys; sys.argv[1:] = ['verify', '--help']; from vggjax.cli.main import main; main()",
    ],
)
def test_a_light_command_imports_nothing_heavy(program):
    code = f"import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules)); {program}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rpartition("LOADED ")[2].split()
    assert "vggjax" in loaded and sorted(set(loaded) & set(HEAVY)) == []


def test_train_py_runs_the_train_command_from_any_folder(tmp_path):
    script = Path(__file__).parents[1] / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: vggjax train" in done.stdout and "--unfreeze" in done.stdout
