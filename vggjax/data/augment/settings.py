"""The settings of augmentation: `Augmentation`, its presets, and what they mean.

`setting`, `check_settings` and `check` declare and check the fields of any dataclass of settings.
Each field is also a flag of the command line. A message names a setting by its field, in backticks:
"`epochs` must be above 0; got 0."

Names, units and defaults are those of Keras' ImageDataGenerator, so that its calls can be copied;
random resized crops, RandAugment, random erasing, mixup and CutMix are added. All are off by
default. augment.py applies them on the device.
"""

import dataclasses
import math
import operator
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vggjax.errors import ConfigError, unknown_name


def setting(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    non_empty: bool = False,
) -> Any:
    """Declare a dataclass field with the bounds that `check_settings` holds its value to.

    The bounds of a tuple field hold for each of its items. None, where the field's type allows it,
    passes. `non_empty` refuses an empty string or tuple.
    """
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    given = {bound: limit for bound, limit in bounds.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"bounds": given, "non_empty": non_empty})


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass instance against its declared type, choices and bounds.

    A list, or a single value, becomes a tuple if the field is declared as one. An int may stand for
    a float; no number may be infinite or NaN.

    Raises:
        ConfigError: with the field, what it accepts and the value received.
    """
    kinds = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = _checked(field, kinds[field.name], getattr(settings, field.name))
        object.__setattr__(settings, field.name, value)


def check_field(kind: type, name: str, value: Any) -> Any:
    """Return a value as a field of a dataclass would hold it.

    Raises:
        ConfigError: the value does not fit the field, as in `check_settings`.
    """
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return _checked(field, get_type_hints(kind)[name], value)


def _checked(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    is_tuple = get_origin(kind) is tuple
    if is_tuple and not isinstance(value, tuple):
        single = isinstance(value, str) or not hasattr(value, "__iter__")
        value = (value,) if single else tuple(value)
    for item in value if is_tuple else (value,):
        _check_type(field.name, item, get_args(kind)[0] if is_tuple else kind, value)
        for bound, limit in field.metadata.get("bounds", {}).items():
            holds = item is None or isinstance(item, str) or _HOLDS[bound](item, limit)
            check(SimpleNamespace(**{field.name: value}), field.name, holds, _bounds_text(field))
    if field.metadata.get("non_empty") and value in ("", ()):
        raise ConfigError(f"`{field.name}` is empty; give it a value.")
    return value


_HOLDS = {
    "above": operator.gt,
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
}


def _bounds_text(field: dataclasses.Field) -> str:
    text = " and ".join(f"{bound} {limit}" for bound, limit in field.metadata["bounds"].items())
    return re.sub("^at least (.*) and (?:at most )?", r"from \1 to ", text)


def check(settings: Any, name: str, holds: bool, wanted: str) -> None:
    """Raise ConfigError unless `holds`: "`name` must be {wanted}; got {its value}."."""
    if not holds:
        raise ConfigError(f"`{name}` must be {wanted}; got {shown_value(settings, name)}.")


def shown_value(settings: Any, name: str) -> str:
    """Return a field's value as it is typed on the command line: "0.8 1.2" for a tuple."""
    value = getattr(settings, name)
    return " ".join(map(str, value)) if isinstance(value, tuple) and value else str(value)


def _check_type(name: str, value: Any, kind: Any, received: Any) -> None:
    kinds = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    choices = [choice for k in kinds if get_origin(k) is Literal for choice in get_args(k)]
    kinds = tuple(k for k in kinds if get_origin(k) is not Literal)
    if value in choices:
        return
    if choices and not {*kinds} - {type(None)}:
        if not (value is None and kinds):
            raise ConfigError(unknown_name(f"`{name}`", value, choices))
        return
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join([k.__name__.replace("NoneType", "None") for k in kinds] + choices)
        raise ConfigError(f"`{name}` takes {names}; got {received!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"`{name}` must be a finite number; got {value}.")


FillMode = Literal["nearest", "reflect", "wrap", "constant"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes to the training images, drawn anew for each image and step."""

    rotation_range: float = setting(0.0, at_least=0, at_most=360)
    """Rotate by up to this many degrees, either way."""
    width_shift_range: int | float = setting(0.0, at_least=0)
    """Shift horizontally, either way. A number below 1 is a fraction of the width; from 1 on it is
    pixels, and a whole number n shifts by whole pixels below n. (Keras' own generator shifts
    vertically here, a known bug.)"""
    height_shift_range: int | float = setting(0.0, at_least=0)
    """Shift vertically; numbers as in --width-shift-range."""
    shear_range: float = setting(0.0, at_least=0, below=90)
    """Shear by up to this many degrees, either way. Keras means degrees, too: 0.2 does almost
    nothing."""
    zoom_range: tuple[float, ...] = setting((), at_least=0)
    """Scale each axis by a factor drawn from LOW HIGH, or from 1-Z to 1+Z for a single number Z.
    As in Keras, a factor below 1 makes things larger."""
    channel_shift_range: float = setting(0.0, at_least=0, at_most=255)
    """Add up to this many gray levels, either way, within the image's own range."""
    brightness_range: tuple[float, ...] = setting((), at_least=0)
    """Multiply by a factor drawn from LOW HIGH."""
    fill_mode: FillMode = "nearest"
    """Fill what lies beyond the border with the nearest pixel, the mirrored image, the repeated
    image, or --cval."""
    cval: float = setting(0.0, at_least=0, at_most=255)
    """The gray level of --fill-mode constant, 0 to 255."""
    horizontal_flip: bool = False
    """Flip left to right with probability 1/2."""
    vertical_flip: bool = False
    """Flip top to bottom with probability 1/2."""
    crop_range: tuple[float, ...] = setting((), above=0, at_most=1)
    """Random resized crop: LOW HIGH is its share of the area (torchvision's scale is 0.08 1), its
    aspect ratio 3/4 to 4/3."""
    randaugment: tuple[float, ...] = ()
    """RandAugment (Cubuk et al., 2020): MAGNITUDE from 0, off, to 10, with two operations for each
    image; or OPERATIONS MAGNITUDE."""
    random_erasing: float = setting(0.0, at_least=0, at_most=1)
    """Fill a random box with noise, with this probability (Zhong et al., 2017)."""
    mixup: float = setting(0.0, at_least=0)
    """Blend with another image, labels included: alpha of the Beta distribution (Zhang et al.,
    2018), often 0.2."""
    cutmix: float = setting(0.0, at_least=0)
    """Paste a box of another image, labels mixed by area: alpha (Yun et al., 2019), often 1. With
    --mixup, each image draws one of the two."""

    def __post_init__(self) -> None:
        """Check all fields, a subclass's included.

        Raises:
            ConfigError: with the field, what it accepts and the value received.
        """
        check_settings(self)
        if len(self.zoom_range) == 1:
            check(self, "zoom_range", self.zoom_range[0] < 1, "below 1, or two factors")
        else:
            self._check_pair("zoom_range", "one number below 1, or two as in 0.8 1.2")
            check(self, "zoom_range", not self.zoom_range or self.zoom_range[0] > 0, "above 0")
        self._check_pair("brightness_range", "two factors, as in 0.8 1.2")
        self._check_pair("crop_range", "two shares of the area, as in 0.08 1")
        if self.randaugment:
            *ops, magnitude = self.randaugment
            holds = len(ops) < 2 and all(n in range(1, 11) for n in ops) and 0 <= magnitude <= 10
            wanted = "a magnitude from 0 to 10, or 1 to 10 operations and a magnitude, as in 2 9"
            check(self, "randaugment", holds, wanted)

    def _check_pair(self, name: str, wanted: str) -> None:
        """Raise ConfigError unless the field is empty or LOW HIGH."""
        pair = getattr(self, name)
        check(self, name, len(pair) in (0, 2), wanted)
        check(self, name, not pair or pair[0] <= pair[1], f"{wanted}, the lower one first")


PRESETS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "flip": Augmentation(horizontal_flip=True),
    # torchvision's reference scripts and transfer learning tutorial: RandomResizedCrop and flip.
    "crop-flip": Augmentation(horizontal_flip=True, crop_range=(0.08, 1.0)),
    # torchvision's default strength, 9 of its 30; the paper's 9 of 10 needs hundreds of epochs.
    "randaugment": Augmentation(horizontal_flip=True, randaugment=(2, 3)),
}

NAMES = tuple(field.name for field in dataclasses.fields(Augmentation))
"""The names of the settings."""


def resolve(settings: Augmentation, preset: str | None = None) -> Augmentation:
    """Return the preset with every setting that is not at its default laid over it.

    `settings` may be of a subclass; the result is a plain `Augmentation`. Without a preset, random
    horizontal flips apply only if `settings` augments nothing.

    Raises:
        ConfigError: an unknown preset.
    """
    own = {name: getattr(settings, name) for name in NAMES}
    if preset is None:
        preset = "none" if is_on(Augmentation(**own)) else "flip"
    if preset not in PRESETS:
        raise ConfigError(unknown_name("augmentation", preset, PRESETS))
    changed = {name: value for name, value in own.items() if value != getattr(Augmentation, name)}
    return dataclasses.replace(PRESETS[preset], **changed)


def zoom_bounds(augmentation: Augmentation) -> tuple[float, float]:
    """Return the lowest and highest factor of an axis; (1, 1) is off."""
    zoom = augmentation.zoom_range or (0.0,)
    return (1 - zoom[0], 1 + zoom[0]) if len(zoom) == 1 else (zoom[0], zoom[1])


def randaugment_of(augmentation: Augmentation) -> tuple[int, float]:
    """Return RandAugment's number of operations, 0 if it is off, and their magnitude."""
    if not augmentation.randaugment or augmentation.randaugment[-1] == 0:
        return 0, 0.0
    *ops, magnitude = augmentation.randaugment
    return (int(ops[0]) if ops else 2), magnitude


def is_affine(augmentation: Augmentation) -> bool:
    """Return whether pixels move in a way that needs resampling, flips and RandAugment aside."""
    a = augmentation
    moves = (a.rotation_range, a.width_shift_range, a.height_shift_range, a.shear_range)
    crops = bool(a.crop_range) and a.crop_range != (1, 1)
    return any(moves) or zoom_bounds(a) != (1, 1) or crops


def is_on(augmentation: Augmentation) -> bool:
    """Return whether anything random happens to an image."""
    a = augmentation
    levels = bool(a.channel_shift_range) or a.brightness_range not in ((), (1, 1))
    flips = a.horizontal_flip or a.vertical_flip
    rest = a.random_erasing or a.mixup or a.cutmix or randaugment_of(a)[0]
    return bool(is_affine(a) or levels or flips or rest)


def finite_views(augmentation: Augmentation) -> tuple[int, ...]:
    """Return the numbers of all versions that an image may get; () if there is no end of them.

    Bit 0 of a number is a flip left to right, bit 1 one top to bottom; 0 is the image itself.
    """
    a = augmentation
    if is_on(dataclasses.replace(a, horizontal_flip=False, vertical_flip=False)):
        return ()
    mask = a.horizontal_flip + 2 * a.vertical_flip
    return tuple(view for view in range(4) if view & mask == view)


def describe(augmentation: Augmentation) -> str:
    """Summarize what is on: `rotation 30, shifts 0.2, flip, fill nearest`, or `none`."""
    a, parts = augmentation, []
    if a.crop_range not in ((), (1, 1)):
        parts.append(f"crop {_range_text(a.crop_range)}")
    if a.rotation_range:
        parts.append(f"rotation {a.rotation_range:g}")
    shifts = {"width": a.width_shift_range, "height": a.height_shift_range}
    if a.width_shift_range and a.width_shift_range == a.height_shift_range:
        parts.append(f"shifts {a.width_shift_range:g}")
    else:
        parts += [f"{axis} shift {span:g}" for axis, span in shifts.items() if span]
    if a.shear_range:
        parts.append(f"shear {a.shear_range:g}")
    if zoom_bounds(a) != (1, 1):
        parts.append(f"zoom {_range_text(zoom_bounds(a))}")
    flips = {(1, 0): "flip", (0, 1): "vertical flip", (1, 1): "flips both ways"}
    parts += [text for on, text in flips.items() if on == (a.horizontal_flip, a.vertical_flip)]
    if a.channel_shift_range:
        parts.append(f"channel shift {a.channel_shift_range:g}")
    if a.brightness_range not in ((), (1, 1)):
        parts.append(f"brightness {_range_text(a.brightness_range)}")
    ops, magnitude = randaugment_of(a)
    if ops:
        parts.append(f"RandAugment {ops} x {magnitude:g}")
    if is_affine(a) or ops:
        parts.append(f"fill {a.fill_mode}" + (f" {a.cval:g}" if a.fill_mode == "constant" else ""))
    last = {"erasing": a.random_erasing, "mixup": a.mixup, "CutMix": a.cutmix}
    parts += [f"{name} {value:g}" for name, value in last.items() if value]
    return ", ".join(parts) or "none"


def _range_text(pair: tuple[float, ...]) -> str:
    return "-".join(f"{number:g}" for number in pair)
