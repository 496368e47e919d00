"""One frozen dataclass holds every setting of a run; the command line is made from it.

Each field is a flag of the same name. A Config that exists can be run, as far as that can be known
before the data is seen: construction refuses the rest with the fix. None means that the field is
decided by others, as its docstring says; 0 switches a duration or a bound off.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vggjax.data.augmentation import NAMES as AUGMENTATION_FIELDS
from vggjax.data.augmentation import Augmentation, describe, is_on, resolve
from vggjax.data.fields import check, flag
from vggjax.data.preprocess import Preprocessing
from vggjax.data.splits import parse_split
from vggjax.errors import ConfigError, unknown
from vggjax.models.arch import get_arch, match_layers
from vggjax.models.head import Head
from vggjax.models.vgg import check_size
from vggjax.weights.digests import expected_sha256

HOW_NOT_WHAT = (
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
)
"""Fields that change how a run goes and not what comes out of it: a resumed run may differ here.
(Cached features are the same numbers to the last bit or two: two programs may round differently.)
"""


@dataclass(frozen=True)
class _DataSettings:
    """The first of Config's fields: a base class, so that they come first in --help."""

    dataset: str = "digits"
    """A tfds name, a folder (root/<class>/* or root/{train,val,test}/<class>/*), a CSV with the
    columns path,label[,split], or `digits`."""
    recipe: str | None = None
    """Sets the defaults of what is not given: digits, flowers, probe, finetune or scratch (from
    Python: `make_config`). Without one, `digits` has its own."""
    workdir: str | None = None
    """The run's folder; None makes runs/<time>-<dataset>-<model>. An unfinished run resumes."""
    seed: int = 0
    """Of the splits, the order, the initialisation and every random draw."""

    data_dir: str | None = None
    """Where tfds keeps prepared data sets; None is tfds' own place."""
    split: str = "0.8,0.1,0.1"
    """Shares of train,val,test, stratified by class, where the data set has no splits; or slices
    of its own, as in train[:80%],train[80%:90%],train[90%:]."""
    duplicates: Literal["near", "exact", "ignore"] = "near"
    """Which pictures count as the same and stay in one split: also such as were saved anew or made
    smaller, only equal ones, or none."""
    cross_validate: int = 0
    """Train this many times, each time with another part of the pictures as the test split, and
    judge each picture once; 0 trains once."""
    image_size: int = 224
    """Side in px of the pictures that the model sees, from 32."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` the whole picture to a square, or `crop` the middle of it."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """Of the resize, as in Keras' load_img."""
    preprocess: Literal["auto", "caffe", "torch", "unit"] = "auto"
    """Of the pixels: `caffe` for Keras' weights, `torch`, or `unit` for x/255. `auto` is caffe
    with weights and torch without."""
    cache_mb: int = 2048
    """Keep the decoded pictures in memory where they take no more than this; 0 switches it off."""
    num_threads: int | None = None
    """Threads that decode pictures; None is one for each core."""
    max_unreadable: float = 0.05
    """Go on while no more than this share of a split's pictures is unreadable."""

    augment: Literal["none", "flip", "crop-flip", "randaugment"] | None = None
    """Random changes to the training pictures, by name; the settings below win over it. None is
    flip where none of them is given, and what is given, alone, where one is."""


@dataclass(frozen=True)
class Config(Augmentation, _DataSettings):
    """The settings of one run: data, augmentation, model, training and bookkeeping."""

    model: str = "vgg16"
    """vgg11, vgg13, vgg16 or vgg19; with batch normalisation vgg11_bn ..."""
    weights: str = "imagenet"
    """`imagenet` (Keras' published files), `none` (from scratch), or a weight file."""
    expect_sha256: str | None = None
    """Refuse the weights' file unless this is its checksum, as sha256sum prints it."""
    head: str = "gap-256-0.5-classes"
    """POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS: pooling flatten, avg2 or gap; outputs `classes`
    or a number, 1 for one sigmoid unit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; parameters, logits and loss are float32."""
    convolution: Literal["auto", "winograd", "direct"] = "auto"
    """Of 3x3 kernels on CPUs: `winograd` has a quarter of the products and differs in the sixth
    digit, `direct` has them all, `auto` takes the faster."""

    unfreeze: tuple[str, ...] = ("none",)
    """What trains beside the head: none, all, blocks (block5), layers (block5_conv3)."""
    epochs: int = 6
    """Passes over the training split in all; six give a first classifier, more a better one."""
    head_epochs: int | None = None
    """How many of the epochs train the head alone first; None is a third of them where pretrained
    layers are unfrozen."""
    batch_size: int = 32
    """Pictures in a step, over all devices."""
    optimizer: Literal["adam", "nadam", "rmsprop", "sgd"] = "adam"
    """sgd has momentum 0.9."""
    learning_rate: float = 1e-3
    """Of the head, at its highest."""
    backbone_learning_rate: float | None = None
    """Of the unfrozen layers; None is a hundredth of the head's with pretrained weights, and the
    head's without."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the rates do behind the warm-up, in each stage."""
    warmup_epochs: float = 1.0
    """The rates rise over this long, at most half of a stage."""
    weight_decay: float = 0.0
    """Decoupled, on the kernels of what trains."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` lets each class count alike in the training loss, however many pictures it has."""
    patience: int = 0
    """Stop after this many epochs without a better `monitor`; 0 never stops early."""
    monitor: Literal["val/accuracy", "val/loss"] = "val/accuracy"
    """What chooses the best weights, which are the ones kept."""

    cache_features: Literal["auto", "off"] = "auto"
    """`auto` computes the frozen layers once for each picture and keeps what they give, where
    nothing random comes before and the stage has more than one epoch."""
    cached_views: int = 0
    """With augmentation: draw this many versions of each picture once and keep their features, in
    place of new draws at every step; 0 draws anew and keeps nothing."""
    feature_cache_mb: int = 4096
    """Keep the features in memory where they take no more than this, else in a file in the run
    folder while the stage lasts."""
    feature_dtype: Literal["float32", "bfloat16"] | None = None
    """Of the features as they are kept; None is --dtype's, which loses nothing."""

    parallel: Literal["jit", "pmap"] = "jit"
    """How the step is spread over several devices."""
    log_every_steps: int = 20
    """How often the loss is fetched and written down; at least four times an epoch."""
    checkpoint_minutes: float = 10.0
    """Save this often inside a long epoch as well; every epoch's end is saved."""

    def __post_init__(self) -> None:
        """Refuses what cannot be run, with the fix."""
        super().__post_init__()  # types of all fields, and the augmentation's own checks
        if not self.unfreeze:
            raise ConfigError("--unfreeze takes none, all, blocks or layers; got nothing.")
        arch = get_arch(self.model)
        match_layers(self.unfreeze, (name for name in arch.layers() if "pool" not in name))
        check_size(self.image_size)
        Head.parse(self.head)
        parse_split(self.split)
        positive = ("batch_size", "epochs", "learning_rate", "log_every_steps")
        for name in positive:
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("dataset", "weights", "workdir"):
            if getattr(self, name) == "":
                raise ConfigError(f"{flag(name)} is empty; give it a value.")
        if self.expect_sha256 is not None:
            expected_sha256(self.expect_sha256)
            self._check("expect_sha256", self.pretrained, "left out where --weights is none")
        self._check("seed", self.seed < 2**32, "below 2**32")
        sizes = ("cache_mb", "cached_views", "feature_cache_mb")
        for name in ("seed", "warmup_epochs", "weight_decay", "patience", *sizes):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        folds = self.cross_validate
        self._check("cross_validate", folds == 0 or folds > 1, "0, or 2 folds or more")
        self._check("max_unreadable", 0 <= self.max_unreadable < 1, "in [0, 1)")
        self._check("checkpoint_minutes", self.checkpoint_minutes > 0, "above 0")
        self._check("num_threads", self.num_threads is None or self.num_threads > 0, "above 0")
        rate = self.backbone_learning_rate
        self._check("backbone_learning_rate", rate is None or rate > 0, "above 0")
        if self.head_epochs is not None:
            fix = f"from 0 to below --epochs {self.epochs}; the epochs count the head's as well"
            self._check("head_epochs", 0 <= self.head_epochs < self.epochs, fix)
        if self.unfreeze == ("none",):
            for name in ("head_epochs", "backbone_learning_rate"):
                self._check(name, getattr(self, name) is None, "left out where --unfreeze is none")

        self._check_features()

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
                f"{given} keeps the features of single pictures, which mixup and CutMix blend "
                f"before; got {drawn}. Set --mixup 0 --cutmix 0, or leave {flag(asked[0])} out."
            )
        if self.cached_views and not is_on(a):
            raise ConfigError(
                f"{given} keeps random versions of the pictures, and augmentation is off: all "
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
    def pretrained(self) -> bool:
        """Whether the convolutional base starts from weights that were learned before."""
        return self.weights != "none"

    @property
    def preprocessing(self) -> Preprocessing:
        """What pictures go through before the model sees them."""
        auto = "caffe" if self.pretrained else "torch"
        mode = auto if self.preprocess == "auto" else self.preprocess
        return Preprocessing(mode, self.image_size, self.resize, self.interpolation)

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the training pictures: the settings, laid over those that have a name."""
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
                    raise ConfigError(unknown("setting", name, names))
            return cls(**fields)
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ConfigError(f"This is no saved configuration: {error}.") from None

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Finds the fields that would change the result: {name: (own value, other's value)}.

        The same augmentation said in another way, by its name or without one, is no difference.
        """
        passed_over = set(HOW_NOT_WHAT)
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
