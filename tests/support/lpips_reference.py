"""The reference's LPIPS in torch alone, and a VGG16 of seeded numbers.

`python -m support.lpips_reference`, in tests/, prints the values in features/lpips_values.json.
"""

import functools
import json
from pathlib import Path

import numpy as np
from flax import nnx

from vggjax.models.arch import CONVS, WIDTHS
from vggjax.models.network import VGG
from vggjax.models.params import assign, shapes

VALUES = Path(__file__).parents[1] / "features" / "lpips_values.json"
PIXELS = (slice(None), slice(0, None, 11), slice(0, None, 7))
"""The pixels of the gradient that are kept."""


@functools.cache
def seeded_vgg16() -> VGG:
    """Return a VGG16 without a top whose activations keep their scale."""
    model = nnx.eval_shape(lambda: VGG("vgg16"))
    rng = np.random.default_rng(16)
    weights = {}
    for layer, params in shapes(model).items():
        kernel = rng.standard_normal(params["kernel"], np.float32)
        kernel *= np.sqrt(2 / np.prod(params["kernel"][:-1]), dtype=np.float32)
        weights[layer] = {"kernel": kernel, "bias": rng.normal(0, 0.1, params["bias"])}
    assign(model, weights)
    model.eval()
    return model


def make_pairs(size: int = 36, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return two pairs of images, uint8 (2, S, S + 4, 3): one close, one far apart."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, size, size + 4, 3), np.uint8)
    others = rng.integers(0, 256, images.shape, np.uint8)
    others[0] = np.clip(images[0].astype(int) + rng.integers(-20, 21, images[0].shape), 0, 255)
    return images, others


def reference(
    model: VGG,
    linear: list[np.ndarray],
    images: np.ndarray,
    others: np.ndarray,
    dtype: type = np.float64,
):
    """Return distances (N,), maps (N, H, W) and the gradient of the sum, computed in `dtype`.

    The formula of `lpips` 0.1.4, version 0.1. `images` and `others` are uint8; the gradient is that
    of the images from -1 to 1.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    def to_torch(array):
        return torch.from_numpy(np.array(array, dtype))

    shift = to_torch([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = to_torch([0.458, 0.448, 0.450])[None, :, None, None]

    def outputs(x):
        x = (x - shift) / scale
        for block, count in enumerate(CONVS["vgg16"], 1):
            for i in range(1, count + 1):
                layer = getattr(model, f"block{block}_conv{i}")
                kernel = to_torch(layer.kernel[...]).permute(3, 2, 0, 1)
                bias = to_torch(layer.bias[...])
                x = nn.functional.relu(functional.conv2d(x, kernel, bias, padding=1))
            yield x
            x = functional.max_pool2d(x, 2, 2)

    def unit(x):
        return x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10)

    a, b = (to_torch(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in (images, others))
    a.requires_grad_()
    total, maps = 0, 0
    assert len(linear) == len(WIDTHS)
    for weights, first, second in zip(linear, outputs(a), outputs(b), strict=True):
        difference = (unit(first) - unit(second)) ** 2
        distance = functional.conv2d(difference, to_torch(weights)[None, :, None, None])
        total = total + distance.mean((2, 3))[:, 0]
        size = images.shape[1:3]
        upsampled = functional.interpolate(
            distance, size=size, mode="bilinear", align_corners=False
        )
        maps = maps + upsampled[:, 0]
    total.sum().backward()
    gradient = a.grad.permute(0, 2, 3, 1)
    return total.detach().numpy(), maps.detach().numpy(), gradient.numpy()


def linear_weights() -> list[np.ndarray]:
    """Return the linear weights that the package ships, (C,) each."""
    from importlib import resources

    with resources.files("vggjax.features").joinpath("lpips_vgg.npz").open("rb") as file:
        arrays = np.load(file)
        return [arrays[f"lin{i}"].reshape(-1) for i in range(5)]


if __name__ == "__main__":
    distances, maps, gradient = reference(seeded_vgg16(), linear_weights(), *make_pairs())
    values = {"distances": distances, "maps": maps[PIXELS], "gradient": gradient[PIXELS]}
    print(json.dumps({name: np.round(array, 9).tolist() for name, array in values.items()}))
