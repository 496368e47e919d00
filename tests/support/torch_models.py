"""torchvision's and timm's VGG, built from torch's layers under the same names; and the endings of
weight files, of which torch's are skipped if it is not installed.
"""

import importlib.util

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

    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = features(convs, norm=norm, widths=widths)
            self.avgpool = nn.AdaptiveAvgPool2d((side, side))
            self.classifier = nn.Sequential(
                nn.Linear(widths[-1] * side**2, hidden), nn.ReLU(), nn.Dropout(),
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
                nn.Linear(hidden, classes),
            )  # fmt: skip

        def forward(self, x):
            return self.classifier(self.avgpool(self.features(x)).flatten(1))

    with torch.device("meta"):  # torch's own initialization takes seconds
        model = VGG()
    return randomize(model)


def timm_vgg(convs, *, norm=False, widths=WIDTHS, side=7, hidden=4096, classes=1000):
    """timm's VGG: the hidden layers are convolutions."""
    import torch
    from torch import nn

    class ConvMlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Conv2d(widths[-1], hidden, side)
            self.fc2 = nn.Conv2d(hidden, hidden, 1)

        def forward(self, x):
            return self.fc2(self.fc1(x).relu()).relu()

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(hidden, classes)

        def forward(self, x):
            return self.fc(x.mean((2, 3)))

    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = features(convs, norm=norm, widths=widths)
            self.pre_logits, self.head = ConvMlp(), Head()

        def forward(self, x):
            return self.head(self.pre_logits(self.features(x)))

    with torch.device("meta"):  # torch's own initialization takes seconds
        model = VGG()
    return randomize(model)


def randomize(model):
    """Return the model in eval mode with seeded weights that keep the scale of activations."""
    import torch

    model = model.to_empty(device="cpu")
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
