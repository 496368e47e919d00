"""The finished model of a run: `model.safetensors` and `model.json`, all that predict needs."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from vggjax.atomic import write_text
from vggjax.data.images.preprocess import Preprocessing
from vggjax.errors import WeightsError, printable
from vggjax.models.head import Head
from vggjax.models.network import Network
from vggjax.models.params import Weights, assign, extract
from vggjax.weights.weight_file import read_weights, write_weights


@dataclass(frozen=True)
class ModelInfo:
    """Everything that a saved model needs beside its weights; `model.json` has these keys."""

    arch: str
    head: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    dtype: str = "float32"
    provenance: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Training and validation images that could not be read: id -> reason."""


def save_model(workdir: str | Path, model: Network, info: ModelInfo) -> Network:
    """Write `model.safetensors`, then `model.json`, whose presence means that both are complete.

    Return the model as `load_model` would.
    """
    workdir, weights = Path(workdir), extract(model)
    metadata = {"arch": info.arch, "head": info.head, "preprocess": info.preprocessing.mode}
    metadata["image_size"] = str(info.preprocessing.image_size)
    metadata["class_names"] = json.dumps(info.class_names)
    metadata |= {name: printable(value) for name, value in info.provenance.items()}
    write_weights(workdir / "model.safetensors", weights, metadata=metadata)
    write_text(workdir / "model.json", json.dumps(dataclasses.asdict(info), indent=2) + "\n")
    return assemble_model(info, weights)


def load_model(workdir: str | Path) -> tuple[Network, ModelInfo]:
    """Load the finished model of a run, ready to predict.

    Raises:
        WeightsError: there is no finished model, or it is damaged.
    """
    info = read_info(workdir)
    return assemble_model(info, read_weights(Path(workdir) / "model.safetensors")), info


def assemble_model(info: ModelInfo, weights: Weights) -> Network:
    """Build the model that `info` describes around `weights`, in evaluation mode."""
    head, size = Head.parse(info.head), info.preprocessing.image_size
    model = nnx.eval_shape(
        lambda: Network(info.arch, head=head, image_size=size, dtype=jnp.dtype(info.dtype))
    )
    assign(model, weights)
    model.eval()
    return model


def read_info(workdir: str | Path) -> ModelInfo:
    """Read `model.json`; raise WeightsError if there is no finished model, or it is damaged."""
    path = Path(workdir) / "model.json"
    if not path.parent.is_dir():
        raise WeightsError(f"There is no run folder {printable(workdir)}.")
    if (path.parent / "fold-1").is_dir():
        raise WeightsError(
            f"{printable(workdir)} is a cross-validation, which has one model per fold; give one "
            f"of them instead: {printable(path.parent / 'fold-1')}."
        )
    if not path.is_file():
        raise WeightsError(
            f"{printable(workdir)} holds no finished model (no model.json). If its training was "
            "interrupted, run the same train command with this `workdir` again; it resumes."
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["preprocessing"] = Preprocessing.from_json(fields["preprocessing"])
        fields["class_names"] = tuple(fields["class_names"])
        info = ModelInfo(**fields)
        Head.parse(info.head)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{printable(path)} is damaged: {error}.") from None
    return info
