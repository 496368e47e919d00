"""What may happen to a training image: `Augmentation`, its checks, and the named presets.

The names, units and defaults are those of Keras' ImageDataGenerator, so that a lesson's call can
be typed over; beyond them stand the random resized crop, RandAugment, random erasing, mixup and
CutMix. Everything is off by default. Nothing is drawn here: augment.py does it, on the device.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.fields import check, check_types, coerce_tuples
from vggjax.errors import ConfigError, unknown_name

FILL_MODES = ("nearest", "reflect", "wrap", "constant")


@dataclass(frozen=True)
class Augmentation:
    """Random changes to the training images, each drawn for each image and step by itself."""

    rotation_range: float = 0.0
    """Turn by up to so many degrees, either way."""
    width_shift_range: int | float = 0.0
    """Shift sideways, either way. Below 1: up to this share of the width; from 1: up to so many
    px; a whole number n: by whole px below n. (Keras' own generator shifts up and down here, which
    is a known fault of it.)"""
    height_shift_range: int | float = 0.0
    """Shift up or down; numbers as in --width-shift-range."""
    shear_range: float = 0.0
    """Shear by up to so many degrees, either way. Degrees, also in Keras: 0.2 is next to none."""
    zoom_range: tuple[float, ...] = ()
    """Stretch by two factors, one for each axis, drawn from LOW HIGH, or from 1-Z to 1+Z where one
    number Z is given. As in Keras, a factor below 1 makes things larger."""
    channel_shift_range: float = 0.0
    """Add up to this many gray levels, either way, within the image's own range."""
    brightness_range: tuple[float, ...] = ()
    """Multiply by a factor drawn from LOW HIGH."""
    fill_mode: Literal["nearest", "reflect", "wrap", "constant"] = "nearest"
    """What lies beyond the border: the nearest pixel, the image mirrored, the image again, or
    --cval."""
    cval: float = 0.0
    """The gray level of --fill-mode constant, 0 to 255."""
    horizontal_flip: bool = False
    """Mirror left to right, one time in two."""
    vertical_flip: bool = False
    """Mirror top to bottom, one time in two."""
    crop_range: tuple[float, ...] = ()
    """Show a random part: LOW HIGH is its share of the area (torchvision's scale is 0.08 1), its
    aspect 3/4 to 4/3."""
    randaugment: tuple[float, ...] = ()
    """RandAugment (Cubuk et al., 2020): MAGNITUDE from 0, off, to 10, with two operations for each
    image; or OPERATIONS MAGNITUDE."""
    random_erasing: float = 0.0
    """Fill a random box with noise, with this probability (Zhong et al., 2017)."""
    mixup: float = 0.0
    """Blend with another image, labels as well: alpha of the Beta distribution (Zhang et al.,
    2018), often 0.2."""
    cutmix: float = 0.0
    """Paste a box of another image, labels mixed by area: alpha (Yun et al., 2019), often 1. With
    --mixup, each image draws one of the two."""

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn, with the fix."""
        coerce_tuples(self)
        check_types(self)
        for name in ("width_shift_range", "height_shift_range", "mixup", "cutmix"):
            check(self, name, getattr(self, name) >= 0, "0 (off) or more")
        check(self, "rotation_range", 0 <= self.rotation_range <= 360, "from 0 to 360 degrees")
        check(self, "shear_range", 0 <= self.shear_range < 90, "from 0 to below 90 degrees")
        for name in ("channel_shift_range", "cval"):
            check(self, name, 0 <= getattr(self, name) <= 255, "from 0 to 255")
        check(self, "random_erasing", 0 <= self.random_erasing <= 1, "a probability, 0 to 1")
        zoom = self.zoom_range
        if len(zoom) == 1:
            check(self, "zoom_range", 0 <= zoom[0] < 1, "from 0 to below 1, or two factors")
        else:
            self._check_pair("zoom_range", "one number below 1, or two as in 0.8 1.2")
        self._check_pair("brightness_range", "two factors, as in 0.8 1.2", lowest=0.0)
        self._check_pair("crop_range", "two shares of the area, as in 0.08 1", highest=1.0)
        if self.randaugment:
            *ops, magnitude = self.randaugment
            right = len(ops) < 2 and all(n in range(1, 11) for n in ops) and 0 <= magnitude <= 10
            wanted = "a magnitude from 0 to 10, or 1 to 10 operations and a magnitude, as in 2 9"
            check(self, "randaugment", right, wanted)

    def _check_pair(
        self, name: str, wanted: str, *, lowest: float | None = None, highest: float | None = None
    ) -> None:
        """Refuses what is neither empty nor LOW HIGH; LOW is above 0 where no `lowest` is given."""
        pair = getattr(self, name)
        if pair:
            check(self, name, len(pair) == 2, wanted)
            low, high = pair
            check(self, name, low > 0 if lowest is None else low >= lowest, f"{wanted}, above 0")
            check(self, name, low <= high, f"{wanted}, the lower one first")
            check(self, name, highest is None or high <= highest, f"{wanted}, at most {highest}")


PRESETS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "flip": Augmentation(horizontal_flip=True),
    # How torchvision's references and its transfer learning lesson train: RandomResizedCrop, flip.
    "crop-flip": Augmentation(horizontal_flip=True, crop_range=(0.08, 1.0)),
    # torchvision's default strength, 9 of its 30; the paper's 9 of 10 wants hundreds of epochs.
    "randaugment": Augmentation(horizontal_flip=True, randaugment=(2, 3)),
}

NAMES = tuple(field.name for field in dataclasses.fields(Augmentation))
"""The names of the settings."""


def resolve(settings: Augmentation, preset: str | None = None) -> Augmentation:
    """Lays what is set over a named preset, and gives an `Augmentation` and nothing else.

    Without a preset: flips where nothing is set, and what is set, alone, where something is.

    Raises:
        ConfigError: no such preset.
    """
    own = {name: getattr(settings, name) for name in NAMES}
    if preset is None:
        preset = "none" if is_on(Augmentation(**own)) else "flip"
    if preset not in PRESETS:
        raise ConfigError(unknown_name("augmentation", preset, PRESETS))
    given = {name: value for name, value in own.items() if value != getattr(Augmentation, name)}
    return dataclasses.replace(PRESETS[preset], **given)


def zoom_bounds(augmentation: Augmentation) -> tuple[float, float]:
    """Gives the two factors between which an axis is stretched; (1, 1) is off."""
    zoom = augmentation.zoom_range or (0.0,)
    return (1 - zoom[0], 1 + zoom[0]) if len(zoom) == 1 else (zoom[0], zoom[1])


def randaugment_of(augmentation: Augmentation) -> tuple[int, float]:
    """Gives RandAugment's number of operations, 0 where it is off, and their magnitude."""
    if not augmentation.randaugment or augmentation.randaugment[-1] == 0:
        return 0, 0.0
    *ops, magnitude = augmentation.randaugment
    return (int(ops[0]) if ops else 2), magnitude


def is_affine(augmentation: Augmentation) -> bool:
    """Says whether pixels move in a way that needs resampling, flips and RandAugment aside."""
    a = augmentation
    moves = (a.rotation_range, a.width_shift_range, a.height_shift_range, a.shear_range)
    crops = bool(a.crop_range) and a.crop_range != (1, 1)
    return any(moves) or zoom_bounds(a) != (1, 1) or crops


def is_on(augmentation: Augmentation) -> bool:
    """Says whether anything is drawn at all."""
    a = augmentation
    levels = bool(a.channel_shift_range) or a.brightness_range not in ((), (1, 1))
    flips = a.horizontal_flip or a.vertical_flip
    rest = a.random_erasing or a.mixup or a.cutmix or randaugment_of(a)[0]
    return bool(is_affine(a) or levels or flips or rest)


def describe(augmentation: Augmentation) -> str:
    """Says what is on in a few words: `rotation 30, shifts 0.2, flip, fill nearest`, or `none`."""
    a, said = augmentation, []
    if a.crop_range not in ((), (1, 1)):
        said.append(f"crop {_words(a.crop_range)}")
    if a.rotation_range:
        said.append(f"rotation {a.rotation_range:g}")
    width, height = a.width_shift_range, a.height_shift_range
    if width or height:
        both = f"shifts {width:g}" if width == height else ""
        one = [f"{axis} shift {n:g}" for axis, n in (("width", width), ("height", height)) if n]
        said.append(both or ", ".join(one))
    if a.shear_range:
        said.append(f"shear {a.shear_range:g}")
    if zoom_bounds(a) != (1, 1):
        said.append(f"zoom {_words(zoom_bounds(a))}")
    flips = {(1, 0): "flip", (0, 1): "vertical flip", (1, 1): "flips both ways"}
    said += [text for on, text in flips.items() if on == (a.horizontal_flip, a.vertical_flip)]
    if a.channel_shift_range:
        said.append(f"channel shift {a.channel_shift_range:g}")
    if a.brightness_range not in ((), (1, 1)):
        said.append(f"brightness {_words(a.brightness_range)}")
    ops, magnitude = randaugment_of(a)
    if ops:
        said.append(f"RandAugment {ops} x {magnitude:g}")
    if is_affine(a) or ops:
        said.append(f"fill {a.fill_mode}" + (f" {a.cval:g}" if a.fill_mode == "constant" else ""))
    for name, word in (("random_erasing", "erasing"), ("mixup", "mixup"), ("cutmix", "CutMix")):
        if getattr(a, name):
            said.append(f"{word} {getattr(a, name):g}")
    return ", ".join(said) or "none"


def _words(pair: tuple[float, ...]) -> str:
    return "-".join(f"{number:g}" for number in pair)
