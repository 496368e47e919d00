"""Write a classifier as a program of `torch.export`, which `torch.export.load` reads.

    program = torch.export.load("roses.pt2").module()
    probabilities = program(images)  # uint8 (N, S, S, 3) -> float32 (N, C)

Any batch size. The state dict has the layers' names: `block1_conv1.weight`. The metadata are the
extra file `vggjax.json` in the program, and beside it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vggjax.data.images.preprocess import BGR_MEAN, RGB_MEAN, RGB_STD
from vggjax.export.description import write_beside
from vggjax.models.arch import EPSILON
from vggjax.models.network import LUMA, Network
from vggjax.models.params import extract
from vggjax.training.run_dir.run_result import ModelInfo

EXTRA_FILE = "vggjax.json"


class TorchClassifier(nn.Module):
    """A network with its preprocessing and temperature, as a module of torch."""

    def __init__(self, model: Network, info: ModelInfo):
        super().__init__()
        self._info, self._layers = info, model.layers
        border = 1 if model.arch.padding == "SAME" else 0
        for name, params in extract(model).items():
            tensors = {param: torch.from_numpy(np.array(a)) for param, a in params.items()}
            layer: nn.Module
            if "kernel" not in tensors:
                layer = nn.BatchNorm2d(len(tensors["scale"]), eps=EPSILON)
                layer.load_state_dict(
                    {
                        "weight": tensors["scale"],
                        "bias": tensors["bias"],
                        "running_mean": tensors["mean"],
                        "running_var": tensors["var"],
                    },
                    strict=False,
                )
            elif tensors["kernel"].ndim == 4:
                weight = tensors["kernel"].permute(3, 2, 0, 1)
                layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=border)
                layer.load_state_dict({"weight": weight, "bias": tensors["bias"]})
            else:
                weight = tensors["kernel"].T
                layer = nn.Linear(weight.shape[1], weight.shape[0])
                layer.load_state_dict({"weight": weight, "bias": tensors["bias"]})
            self.add_module(name, layer)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities float32 (N, C) of images uint8 (N, S, S, 3)."""
        x = self._preprocess(images.to(torch.float32)).permute(0, 3, 1, 2)
        for name in self._layers:
            x = self._run_layer(name, x)
        x = x / (self._info.temperature or 1.0)
        if self._info.is_multilabel:
            return torch.sigmoid(x)
        if x.shape[1] == 1:
            return torch.sigmoid(torch.cat([-x, x], dim=1))
        return torch.softmax(x, dim=1)

    def _preprocess(self, pixels: torch.Tensor) -> torch.Tensor:
        mode = self._info.preprocessing.mode
        if mode == "caffe":
            return pixels.flip(-1) - torch.tensor(BGR_MEAN)
        pixels = pixels / 255.0
        return (
            (pixels - torch.tensor(RGB_MEAN)) / torch.tensor(RGB_STD) if mode == "torch" else pixels
        )

    def _run_layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if name == "gray":
            return (x * torch.tensor(LUMA).reshape(3, 1, 1)).sum(1, keepdim=True)
        if "_conv" in name:
            x = self.get_submodule(name)(x)
            return x if name.replace("_conv", "_bn") in self._layers else torch.relu(x)
        if "_bn" in name or name.startswith("fc"):
            return torch.relu(self.get_submodule(name)(x))
        if name.endswith("_pool"):
            return nn.functional.max_pool2d(x, 2)
        if name == "avg2":
            return nn.functional.avg_pool2d(x, 2)
        if name == "gap":
            return x.mean((2, 3))
        if name == "flatten":  # Keras' order, channels last
            return x.permute(0, 2, 3, 1).flatten(1)
        if name == "predictions":
            return self.get_submodule(name)(x)
        return x  # dropout


def write(path: Path, model: Network, info: ModelInfo, metadata: dict[str, str]) -> None:
    """Write the program, and its metadata in it and beside it."""
    size = info.preprocessing.image_size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            TorchClassifier(model, info), (example,), dynamic_shapes={"images": {0: batch}}
        )
    torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(metadata)})
    write_beside(path, metadata | {"torch": torch.__version__})
