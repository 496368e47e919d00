"""One frozen dataclass holds every setting of a run; the command line is made from it.

Each field is a flag of the same name. A Config that exists can be run, as far as that can be known
before the data is seen: construction refuses the rest with the fix. None means that the field is
decided by others, as its docstring says; 0 switches a duration or a bound off.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggjax.data.augment.fields import check, flag, shown_value
from vggjax.data.augment.settings import NAMES as AUGMENTATION_FIELDS
from vggjax.data.augment.settings import Augmentation, describe, is_on, resolve
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.splits.splits import parse_split
from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import match_layers
from vggjax.models.head import Head
from vggjax.models.registry import find_arch
from vggjax.training.data_settings import DataSettings
from vggjax.training.learning_settings import LearningSettings, ModelSettings, RunSettings
from vggjax.training.stages import Stage, parse_stages
from vggjax.weights.digests import expected_sha256

RESUME_MUTABLE_FIELDS = (
    "workdir",
    "expect_sha256",
    "data_dir",
    "cache_mb",
    "cache_features",
    "feature_cache_mb",
    "num_threads",
    "max_unreadable",
    "log_every_steps",
    "checkpoint_minutes",
    "tensorboard",
    "lr_find",
    "on_collapse",
)
"""Fields that change how a run goes and not what comes out of it: a resumed run may differ here.
(Cached features are the same numbers to the last bit or two: two programs may round differently.
A run that collapsed may be let recover.)
"""


_EPOCHS = 6
"""Of a run that says neither --epochs nor --stages."""


@dataclass(frozen=True)
class Config(RunSettings, LearningSettings, ModelSettings, Augmentation, DataSettings):
    """The settings of one run: data, augmentation, model, learning and bookkeeping, in --help too.

    (A dataclass takes its fields from the last of its base classes first.)
    """

    def __post_init__(self) -> None:
        """Refuses what cannot be run, with the fix."""
        super().__post_init__()  # types of all fields, and the augmentation's own checks
        if not self.unfreeze:
            raise ConfigError("--unfreeze takes none, all, blocks or layers; got nothing.")
        match_layers(self.unfreeze, self.base_layers)
        find_arch(self.model).check_size(self.image_size)
        Head.parse(self.head)
        parse_split(self.split)
        positive = ("batch_size", "learning_rate", "log_every_steps", "checkpoint_minutes")
        for name in (*positive, "plateau_patience"):
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("epochs", "num_threads", "backbone_learning_rate"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "above 0")
        for name in ("dataset", "weights", "workdir", "start_from"):
            if getattr(self, name) == "":
                raise ConfigError(f"{flag(name)} is empty; give it a value.")
        if self.expect_sha256 is not None:
            expected_sha256(self.expect_sha256)
            self._check("expect_sha256", self.pretrained, "left out where --weights is none")
        self._check("seed", self.seed < 2**32, "below 2**32")
        sizes = ("cache_mb", "cached_views", "feature_cache_mb", "epoch_images")
        durations = ("warmup_epochs", "patience")
        for name in ("seed", "weight_decay", "clip_norm", *durations, *sizes):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("max_unreadable", "label_smoothing", "ema", "beta1", "beta2"):
            self._check(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._check("layer_decay", 0 < self.layer_decay <= 1, "above 0, to 1")
        self._check("plateau_factor", 0 < self.plateau_factor < 1, "between 0 and 1")
        folds = self.cross_validate
        self._check("cross_validate", folds == 0 or folds > 1, "0, or 2 folds or more")
        self._check_stages()
        self._check_features()

    def _check_stages(self) -> None:
        """Refuses what the stages leave no place for."""
        if self.stages:
            parse_stages(self.stages, self.base_layers)
            for name in ("unfreeze", "head_epochs", "epochs"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ConfigError(
                        f"--stages {shown_value(self, 'stages')} says what trains and for how "
                        f"long; leave {flag(name)} {shown_value(self, name)} out."
                    )
        if self.head_epochs is not None:
            fix = f"from 0 to below --epochs {self.num_epochs}; the epochs count the head's as well"
            self._check("head_epochs", 0 <= self.head_epochs < self.num_epochs, fix)
        if self.unfrozen == ("none",):
            missing = "--stages unfreeze nothing" if self.stages else "--unfreeze is none"
            for name in ("head_epochs", "backbone_learning_rate", "layer_decay"):
                default = getattr(type(self), name)
                self._check(name, getattr(self, name) == default, f"left out where {missing}")
        if self.start_from is not None and self.cross_validate:
            raise ConfigError(
                "--cross-validate judges every image, also those that the run of --start-from "
                "has learned; leave one of the two out."
            )
        if self.start_from is not None and self.weights not in ("imagenet", "none"):
            raise ConfigError(
                f"--start-from {self.start_from} brings its own weights; leave --weights "
                f"{self.weights} out."
            )

    def _check_features(self) -> None:
        """Refuses what can keep no features, where keeping them would change what is learned."""
        asked = [name for name in ("cached_views", "feature_dtype") if getattr(self, name)]
        if not asked:
            return
        given, a = f"{flag(asked[0])} {getattr(self, asked[0])}", self.augmentation
        drawn = f"augmentation {describe(a)}"
        if self.cache_features == "off":
            raise ConfigError(
                f"{given} is of the kept features, and --cache-features is off; leave one out."
            )
        if a.mixup or a.cutmix:
            raise ConfigError(
                f"{given} keeps the features of single images, which mixup and CutMix blend "
                f"before; got {drawn}. Set --mixup 0 --cutmix 0, or leave {flag(asked[0])} out."
            )
        if self.cached_views and not is_on(a):
            raise ConfigError(
                f"{given} keeps random versions of the images, and augmentation is off: all "
                "would be the same. Leave it out: features are then kept by themselves."
            )
        if is_on(a) and not self.cached_views:
            raise ConfigError(
                f"{given} is of the kept features, and new draws at every step leave none to keep; "
                f"got {drawn}. Use --augment none or --cached-views K, or leave {given} out."
            )

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        check(self, name, holds, wanted)

    @property
    def base_layers(self) -> tuple[str, ...]:
        """The names of the base's layers that have parameters, in the order in which they run."""
        return find_arch(self.model).weighted_layers()

    @property
    def num_epochs(self) -> int:
        """The epochs of the run: `epochs`, or what the stages add up to."""
        if self.stages:
            return sum(stage.epochs for stage in self.planned_stages)
        return _EPOCHS if self.epochs is None else self.epochs

    @property
    def planned_stages(self) -> tuple[Stage, ...]:
        """The stages as `stages` has them; none where --unfreeze decides."""
        return parse_stages(self.stages, self.base_layers)

    @property
    def unfrozen(self) -> tuple[str, ...]:
        """What trains beside the head in the end, as `unfreeze` says it."""
        return self.planned_stages[-1].unfreeze if self.stages else self.unfreeze

    @property
    def pretrained(self) -> bool:
        """Whether the convolutional base starts from weights that were learned before."""
        return self.weights != "none" or self.start_from is not None

    @property
    def preprocessing(self) -> Preprocessing:
        """What images go through before the model sees them."""
        auto = "caffe" if self.pretrained else "torch"
        mode = auto if self.preprocess == "auto" else self.preprocess
        return Preprocessing(mode, self.image_size, self.resize, self.interpolation)

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the training images: the settings, laid over those that have a name."""
        return resolve(self, self.augment)

    def to_json(self) -> str:
        """Writes every field, for `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: no JSON object, or a key that is no field.
        """
        try:
            fields = json.loads(text)
            names = [field.name for field in dataclasses.fields(cls)]
            for name in fields:
                if name not in names:
                    raise ConfigError(unknown_name("setting", name, names))
            return cls(**fields)
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ConfigError(f"This is no saved configuration: {error}.") from None

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Finds the fields that would change the result: {name: (own value, other's value)}.

        The same augmentation said in another way, by its name or without one, is no difference.
        Nor are epochs that are said or left out.
        """
        passed_over = set(RESUME_MUTABLE_FIELDS)
        if self.num_epochs == other.num_epochs:
            passed_over.add("epochs")
        if self.augmentation == other.augmentation:
            passed_over |= {"augment", *AUGMENTATION_FIELDS}
        return {
            field.name: (mine, theirs)
            for field in dataclasses.fields(self)
            if field.name not in passed_over
            and (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        }


def read_config(workdir: str | Path) -> Config:
    """Reads a run folder's `config.json`.

    Raises:
        ConfigError: no such folder or file, or one that is damaged.
    """
    path = Path(workdir) / "config.json"
    try:
        return Config.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"{workdir} is no run folder: it has no readable config.json. Give --workdir a folder "
            "that train.py made."
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
