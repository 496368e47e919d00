"""torchvision's and timm's VGG, built from torch's layers under the same names; and the endings of
weight files, of which torch's are skipped if it is not installed.
"""

import importlib.util
from collections import OrderedDict

import numpy as np
import pytest

from vggjax.models.arch import WIDTHS
from vggjax.weights.weight_file import WRITABLE

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)

ENDINGS = [
    pytest.param(ending, marks=needs_torch) if ending in (".pth", ".pt") else ending
    for ending in WRITABLE
]


def features(convs, *, norm, widths=WIDTHS):
    """torchvision's `make_layers`."""
    from torch import nn

    layers, before = [], 3
    for count, width in zip(convs, widths, strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] * norm + [nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def torchvision_vgg(convs, *, norm=False, widths=WIDTHS, side=7, hidden=4096, classes=1000):
    """torchvision's VGG."""
    import torch
    from torch import nn

    with torch.device("meta"):  # torch's own initialization takes seconds
        classifier = nn.Sequential(
            nn.Linear(widths[-1] * side**2, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, classes),
        )  # fmt: skip
        return _randomized(
            features=features(convs, norm=norm, widths=widths),
            avgpool=nn.AdaptiveAvgPool2d((side, side)),
            flatten=nn.Flatten(),
            classifier=classifier,
        )


def timm_vgg(convs, *, norm=False, widths=WIDTHS, side=7, hidden=4096, classes=1000):
    """timm's VGG: the hidden layers are convolutions."""
    import torch
    from torch import nn

    with torch.device("meta"):  # torch's own initialization takes seconds
        mlp = {"fc1": nn.Conv2d(widths[-1], hidden, side), "act1": nn.ReLU(),
               "fc2": nn.Conv2d(hidden, hidden, 1), "act2": nn.ReLU()}  # fmt: skip
        pooled = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        return _randomized(
            features=features(convs, norm=norm, widths=widths),
            pre_logits=nn.Sequential(OrderedDict(mlp)),
            head=nn.Sequential(OrderedDict(pooled | {"fc": nn.Linear(hidden, classes)})),
        )


def _randomized(**modules):
    """Return the modules in sequence, in eval mode, with weights that keep activations' scale."""
    import torch

    model = torch.nn.Sequential(OrderedDict(modules)).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                limit = (6 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-limit, limit, generator=generator)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            else:
                low = 0.5 if name.endswith(("running_var", "weight")) else -0.5
                tensor.uniform_(low, low + 1, generator=generator)
    return model.eval()


def make_images(count, size, seed=5):
    """Return images as after 'torch' preprocessing, float32 (N, S, S, 3)."""
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype(np.float32)


def run(model, images):
    """Return torch's outputs for (N, H, W, C) images."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
