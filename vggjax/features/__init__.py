"""VGG's features: perceptual and style losses, LPIPS, stylization, embeddings, feature statistics.

from vggjax.features import LPIPS, perceptual_loss
distances = LPIPS(weights="vgg16_torchvision.safetensors")(images, others, value_range=(0, 1))

The public names are loaded on first use, as in vggjax itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggjax.features.losses import content_loss as content_loss
    from vggjax.features.losses import gram_matrix as gram_matrix
    from vggjax.features.losses import layer_features as layer_features
    from vggjax.features.losses import perceptual_loss as perceptual_loss
    from vggjax.features.losses import style_loss as style_loss
    from vggjax.features.losses import total_variation as total_variation
    from vggjax.features.lpips import LPIPS as LPIPS
    from vggjax.features.statistics import FeatureStatistics as FeatureStatistics
    from vggjax.features.statistics import frechet_distance as frechet_distance

_LOSSES = "content_loss gram_matrix layer_features perceptual_loss style_loss total_variation"

_MODULES = {
    "losses": tuple(_LOSSES.split()),
    "lpips": ("LPIPS",),
    "statistics": ("FeatureStatistics", "frechet_distance"),
}
"""Where each public name is defined; a test holds it equal to the imports above."""

_PLACES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [*_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'vggjax.features' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
