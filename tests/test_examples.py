"""The notebooks in examples/ run from the first cell to the last, on small stand-ins."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.tiny_run import make_images

import vggjax

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Return parameters for a notebook: images of two classes, and weights that know nothing."""
    folder = tmp_path_factory.mktemp("stand-in")
    images = make_images(folder / "images", ("a", "b"), each=20)
    weights = folder / "vgg11.safetensors"
    model = vggjax.load_pretrained("vgg11", weights=None, include_top=False)
    vggjax.write_weights(weights, vggjax.extract(model))
    settings = {"model": "vgg11", "image_size": 64, "epochs": 1, "preprocess": "caffe"}
    settings |= {"split": "0.6,0.2,0.2", "batch_size": 8, "duplicates": "ignore"}
    return {"DATA": str(images), "WEIGHTS": str(weights), "SETTINGS": settings, "EPOCHS": 1}


def make_lpips_stand_in(images: Path, folder: Path) -> dict:
    """Return the parameters of the notebook on LPIPS: two images, and a VGG16."""
    content, style = sorted(images.rglob("*.png"))[:2]
    weights = folder / "vgg16.safetensors"
    model = vggjax.load_pretrained("vgg16", weights=None, include_top=False)
    vggjax.write_weights(weights, vggjax.extract(model))
    values = {"CONTENT": str(content), "STYLE": str(style), "WEIGHTS": str(weights)}
    return values | {"SIZE": 32, "STEPS": 2}


def parameters(cell, values: dict) -> str:
    """Return the source of a notebook's parameters with other values."""
    names = re.findall(r"^(\w+) = ", cell.source, re.MULTILINE)
    return "\n".join(f"{name} = {values[name]!r}" for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_the_first_cell_to_the_last(name, stand_in, tmp_path):
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    values = dict(stand_in)
    if name.startswith("collapse"):  # whose recipes have stages, which state the epochs
        settings = {key: value for key, value in values["SETTINGS"].items() if key != "epochs"}
        values["SETTINGS"] = settings | {"epoch_images": 8, "log_every_steps": 1}
    if name.startswith("lpips"):
        values |= make_lpips_stand_in(Path(values["DATA"]), tmp_path)
    cell.source = parameters(cell, values)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_outputs(name):
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
