"""The settings of a run: one frozen dataclass, from which the command line is made.

Each field is a flag of the same name, and its docstring the flag's help. Constructing a Config
checks everything that can be checked without the data. None leaves a value to be derived, as the
field's docstring says; 0 turns a duration or a limit off.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vggjax.data.augment.settings import NAMES as AUGMENTATION_FIELDS
from vggjax.data.augment.settings import (
    Augmentation,
    check,
    describe,
    finite_views,
    is_on,
    resolve,
    setting,
    shown_value,
)
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.sources.options import DatasetOptions
from vggjax.data.splits.splits import parse_split
from vggjax.errors import ConfigError, printable, unknown_name
from vggjax.models.arch import match_layers
from vggjax.models.convnets import find_arch
from vggjax.models.head import Head
from vggjax.training.devices.settings import DeviceSettings
from vggjax.training.run_dir.checked_json import read_json
from vggjax.weights.digests import expected_sha256

RESUME_MUTABLE_FIELDS = (
    "workdir", "expect_sha256", "data_dir", "cache_mb", "cache_features", "feature_cache_mb",
    "num_threads", "max_unreadable", "devices", "remat", "log_every_steps", "checkpoint_minutes",
    "tensorboard", "lr_find", "on_collapse",
)  # fmt: skip
"""Fields that may differ when a run is resumed: they change how it runs and not its result.

Cached features agree to the last bit or two, as two compiled programs may round differently; so do
the sums over another number of devices. A run that collapsed may be resumed with another
`on_collapse`.
"""


@dataclass(frozen=True)
class Stage:
    """Consecutive epochs in which the same layers train."""

    name: str
    unfreeze: tuple[str, ...]
    first_epoch: int
    epochs: int


@dataclass(frozen=True)
class DataSettings:
    """Where the images and the results are."""

    dataset: str = setting("digits", non_empty=True)
    """A tfds name, a folder (root/<class>/* or root/{train,val,test}/<class>/*), a CSV file with
    the columns path,label[,split], or `digits`."""
    recipe: str | None = None
    """Set the defaults of this recipe; `vggjax recipes` lists them (in Python: `make_config`).
    `digits` has its own and uses it by default."""
    workdir: str | None = setting(None, non_empty=True)
    """The run's folder; None is runs/<time>-<dataset>-<model>. An unfinished run is resumed."""
    seed: int = setting(0, at_least=0, below=2**32)
    """Seed of splits, shuffling, initialization, augmentation and dropout."""

    data_dir: str | None = None
    """Where datasets of tfds are kept, and archives are found that were put there by hand; None is
    tfds' default."""


@dataclass(frozen=True)
class InputSettings:
    """How images are split, decoded and resized."""

    split: str = "0.8,0.1,0.1"
    """Shares of train,val,test, stratified by class, for a dataset without splits; or slices of its
    splits, as in train[:80%],train[80%:90%],train[90%:]."""
    duplicates: Literal["near", "exact", "ignore"] = "near"
    """Keep duplicates in one split: near-duplicates too (saved again or resized), exact ones only,
    or none."""
    cross_validate: int = setting(0, at_least=0)
    """Number of folds of a cross-validation: as many runs, each with another test split, so that
    each image is tested once. 0 trains one run."""
    image_size: int = 224
    """Side in px of the model's input; at least 32 for VGG."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` the image to a square, or `crop` its center."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """Interpolation of the resize, as in Keras' load_img."""
    preprocess: Literal["auto", "caffe", "torch", "unit"] = "auto"
    """Pixel values: `caffe` for Keras' weights, `torch`, or `unit` for x/255. `auto` is what the
    weights were trained with, and torch without weights."""
    cache_mb: int = setting(2048, at_least=0)
    """Keep decoded images in memory if they take at most this many MiB; 0 turns it off."""
    num_threads: int | None = setting(None, above=0)
    """Threads that decode images; None is one per core."""
    max_unreadable: float = setting(0.05, at_least=0, below=1)
    """Largest share of unreadable images in a split; more end the run."""

    augment: Literal["none", "flip", "crop-flip", "randaugment"] | None = None
    """Augmentation of the training images by preset; None is flip, or the augmentation settings
    that are given, alone. They override the preset's."""


@dataclass(frozen=True)
class Config(DeviceSettings, Augmentation, InputSettings, DatasetOptions, DataSettings):
    """The settings of one run: data, augmentation, model, training and bookkeeping.

    A dataclass has the fields of its last base class first, so --help begins with the data.
    """

    model: str = "vgg16"
    """vgg11, vgg13, vgg16 or vgg19; with batch normalization vgg11_bn ...; a small convnet such as
    cifar10-cnn, or one spelled out, such as cnn-32-pool-64-pool-64."""
    weights: str = setting("imagenet", non_empty=True)
    """`imagenet` (Keras' published weights), `none` (random), or a weight file."""
    expect_sha256: str | None = None
    """Refuse a weight file with another SHA-256 checksum, written as sha256sum prints it."""
    start_from: str | None = setting(None, non_empty=True)
    """Folder of a finished run whose backbone and head to start from, in place of --weights, with
    the same classes, model and head; its preprocessing is taken over."""
    head: str = "gap-256-0.5-classes"
    """POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS: pooling flatten, avg2 or gap; outputs `classes` or a
    number, 1 for a single sigmoid unit."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; parameters, statistics, logits and loss are float32. None is bfloat16 on GPUs
    and TPUs, and float32 on CPUs."""
    convolution: Literal["auto", "winograd", "direct"] = "auto"
    """Algorithm of 3x3 convolutions on CPUs: `winograd` has a quarter of the products and differs
    in the sixth digit, `direct` has all, `auto` uses the faster one."""

    unfreeze: tuple[str, ...] = setting(("none",), non_empty=True)
    """What to train besides the head: none, all, blocks (block5) or layers (block5_conv3)."""
    stages: tuple[str, ...] = ()
    """In place of --unfreeze, --head-epochs and --epochs: what to unfreeze one after the other, and
    for how many epochs, as in head:5 block5:20 block4:10. What is unfrozen stays unfrozen."""
    epochs: int | None = setting(None, above=0)
    """Passes over the training split (or --epoch-images of it); None is 6, enough for a first
    classifier, or the sum of --stages."""
    head_epochs: int | None = setting(None, at_least=0)
    """Epochs, out of all, that train the head alone first; None is a third of them if pretrained
    layers are unfrozen below a new head."""
    epoch_images: int = setting(0, at_least=0)
    """Images per epoch, rounded to whole batches; the next epoch continues where the last one ended
    in the training split. 0 is the whole split."""
    batch_size: int | Literal["auto"] = setting(32, above=0)
    """Images per step, over all devices; `auto` is what fits in their memory, at most 256 each."""
    head_solver: Literal["steps", "lbfgs"] = "steps"
    """`steps` of --optimizer, or `lbfgs`: solve the head's own stage in seconds, penalty by val."""
    optimizer: Literal["adam", "nadam", "rmsprop", "sgd"] = "adam"
    """adam, nadam and rmsprop as in Keras; sgd with momentum 0.9."""
    beta1: float = setting(0.9, at_least=0, below=1)
    """Decay of the first moment in adam and nadam."""
    beta2: float = setting(0.999, at_least=0, below=1)
    """Decay of the second moment in adam and nadam."""
    learning_rate: float = setting(1e-3, above=0)
    """Peak learning rate of the head."""
    backbone_learning_rate: float | None = setting(None, above=0)
    """Peak learning rate of the unfrozen layers; None is a hundredth of the head's with pretrained
    weights, and the head's without."""
    layer_decay: float = setting(1.0, above=0, at_most=1)
    """Learning rate of each block relative to the next block, the last one at
    --backbone-learning-rate; 1 is one rate for all."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """Learning rates after the warmup, in each stage: fall to 0, stay, or fall by --plateau-factor
    when val/loss stops falling (Keras' ReduceLROnPlateau)."""
    plateau_factor: float = setting(0.1, above=0, below=1)
    """With --schedule plateau: multiply the learning rates by this."""
    plateau_patience: int = setting(10, above=0)
    """With --schedule plateau: wait this many epochs for a val/loss that is lower by at least
    1e-4."""
    warmup_epochs: float = setting(1.0, at_least=0)
    """Epochs over which the learning rates rise, at most half of a stage."""
    weight_decay: float = setting(0.0, at_least=0)
    """Decoupled weight decay of the trained kernels."""
    clip_norm: float = setting(0.0, at_least=0)
    """Clip the gradients of the trained layers to this global norm; 0 turns it off."""
    label_smoothing: float = setting(0.0, at_least=0, below=1)
    """Share of each label spread over all classes, in the training loss only; with --task
    multilabel over its presence and absence."""
    ema: float = setting(0.0, at_least=0, below=1)
    """Evaluate and keep an exponential moving average of the weights with this decay per step, as
    in 0.999 (lower in the first steps); 0 keeps the weights themselves."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` gives each class the same weight in the training loss, however many images it
    has; with --task multilabel, the presence and the absence of each label."""
    patience: int = setting(0, at_least=0)
    """Stop early after this many epochs without a better --monitor; 0 never does."""
    monitor: Literal["val/accuracy", "val/loss", "val/mAP"] | None = None
    """The metric that selects the best weights, which are kept; None is val/accuracy, and val/mAP
    (mean average precision) with --task multilabel."""
    on_collapse: Literal["warn", "stop", "recover"] = "warn"
    """When the network stops learning (loss or accuracy at chance, or not finite): warn, stop, or
    go back to the last good checkpoint with a tenth of the learning rates."""

    cache_features: Literal["auto", "off"] = "auto"
    """`auto` computes the frozen layers once per image, and once per flip, and keeps their outputs
    while stages need them, if images are visited more often than that. Augmentation beyond flips
    needs --cached-views."""
    cached_views: int = setting(0, at_least=0)
    """Augment each image this many times, once for all, and keep the features of these views, which
    take turns; 0 draws anew at every step, and keeps features unless there is more than flips."""
    feature_cache_mb: int = setting(4096, at_least=0)
    """Keep features in memory if those of all stages take at most this many MiB, else in files in
    the run folder until their stage ends."""
    feature_dtype: Literal["float32", "bfloat16"] | None = None
    """dtype of the kept features; None is that of --dtype, which loses nothing."""

    log_every_steps: int = setting(20, above=0)
    """Steps between two logged losses; at least four are logged per epoch."""
    checkpoint_minutes: float = setting(10.0, above=0)
    """Save this often inside a long epoch; the end of every epoch is saved too."""
    strict_resume: bool = False
    """Refuse to resume if a checkpoint is damaged, instead of setting it aside and resuming from
    the latest intact one."""
    tensorboard: bool = False
    """Write the log as TensorBoard event files too."""
    lr_find: bool = False
    """Train nothing: run a learning rate range test, print and plot the rate to use."""

    def __post_init__(self) -> None:
        """Check every field, and the fields against one another.

        Raises:
            ConfigError: what cannot be run, with the fix.
        """
        super().__post_init__()  # types, choices and bounds of all fields
        DatasetOptions.__post_init__(self)
        match_layers(self.unfreeze, self.base_layers)
        find_arch(self.model).check_size(self.image_size)
        Head.parse(self.head)
        parse_split(self.split)
        check(self, "cross_validate", self.cross_validate != 1, "0, or at least 2 folds")
        has_metric = self.monitor != "val/mAP" or self.task == "multilabel"
        check(self, "monitor", has_metric, "another metric unless `task` is multilabel")
        if self.expect_sha256 is not None:
            expected_sha256(self.expect_sha256)
            check(self, "expect_sha256", self.pretrained, "left out if `weights` is none")
        fits = self.batch_size == "auto" or self.accumulate <= self.batch_size
        check(self, "accumulate", fits, f"at most `batch_size`, {self.batch_size}")
        self._check_stages()
        self._check_start()
        self._check_features()
        if self.head_solver == "lbfgs":
            self._check_solver()

    def _check_stages(self) -> None:
        """Check the settings that divide the epochs."""
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        if self.stages:
            parse_stages(self.stages, self.base_layers)
            for name in [n for n in changed if n in ("unfreeze", "head_epochs", "epochs")]:
                raise ConfigError(
                    f"`stages` {shown_value(self, 'stages')} states what to train and for how "
                    f"long; leave `{name}` {shown_value(self, name)} out."
                )
        if self.head_epochs is not None:
            wanted = f"below `epochs`, {self.num_epochs}, which counts the head's epochs too"
            check(self, "head_epochs", self.head_epochs < self.num_epochs, wanted)
        if self.unfrozen == ("none",):
            reason = "`stages` unfreeze nothing" if self.stages else "`unfreeze` is none"
            for name in ("head_epochs", "backbone_learning_rate", "layer_decay"):
                check(self, name, name not in changed, f"left out if {reason}")

    def _check_start(self) -> None:
        """Check what cannot stand beside `start_from`."""
        if self.start_from and self.cross_validate:
            raise ConfigError(
                "`cross_validate` tests every image, and the run in `start_from` was trained on "
                "some of them; leave one of the two out."
            )
        if self.start_from and self.weights not in ("imagenet", "none"):
            raise ConfigError(
                f"`start_from` {printable(self.start_from)} has its own weights; leave `weights` "
                f"{printable(self.weights)} out."
            )

    def _check_features(self) -> None:
        """Check that features can be kept if a setting asks for it."""
        a, cached = self.augmentation, self.cached_views
        requested = [name for name in ("cached_views", "feature_dtype") if getattr(self, name)]
        if not requested:
            return
        name = requested[0]
        given = f"`{name}` {getattr(self, name)}"
        reason = ""
        if self.cache_features == "off":
            reason = "applies to kept features, and `cache_features` is off; leave one out."
        elif a.mixup or a.cutmix:
            reason = (
                "keeps features of single images, and mixup and CutMix blend images. Set `mixup` 0 "
                f"and `cutmix` 0, or leave `{name}` out."
            )
        elif cached and not is_on(a):
            reason = "keeps augmented views, and augmentation is off. Leave one out."
        elif not cached and not finite_views(a):
            reason = (
                "applies to kept features, and none are kept if images are augmented anew at every "
                f"step; got augmentation {describe(a)}. Have flips alone, give `cached_views`, or "
                f"leave {given} out."
            )
        if reason:
            raise ConfigError(f"{given} {reason}")

    def _check_solver(self) -> None:
        """Check that a solver has one dense layer on cached features of images with one label."""
        head, why = Head.parse(self.head), "if `head_solver` is lbfgs"
        check(self, "head", head.is_linear, f"one dense layer, as in convs3-classes, {why}")
        check(self, "task", self.task == "multiclass", f"multiclass {why}")
        check(self, "cache_features", self.cache_features == "auto", f"auto {why}")
        views = self.cached_views or len(finite_views(self.augmentation))
        check(self, "augment", views > 0, f"flip or none, or give `cached_views`, {why}")
        head_epochs = self.epochs if self.unfreeze == ("none",) else self.head_epochs
        epochs = [stage.epochs for stage in self.planned_stages if stage.unfreeze == ("none",)]
        is_one = set(epochs or [head_epochs or 1]) == {1}
        check(self, "stages" if self.stages else "epochs", is_one, f"one epoch of the head {why}")

    @property
    def base_layers(self) -> tuple[str, ...]:
        """The names of the backbone's layers with parameters, in forward order."""
        return find_arch(self.model).weighted_layers()

    @property
    def num_epochs(self) -> int:
        """Epochs of the run."""
        if self.stages:
            return sum(stage.epochs for stage in self.planned_stages)
        return self.epochs or (
            1 if self.head_solver == "lbfgs" and self.unfreeze == ("none",) else 6
        )

    @property
    def planned_stages(self) -> tuple[Stage, ...]:
        """The stages of `stages`; empty if `unfreeze` decides (see freezing.plan_stages)."""
        return parse_stages(self.stages, self.base_layers)

    @property
    def unfrozen(self) -> tuple[str, ...]:
        """What trains besides the head in the last stage, as `unfreeze` states it."""
        return self.planned_stages[-1].unfreeze if self.stages else self.unfreeze

    @property
    def best_metric(self) -> str:
        """The metric that selects the best weights: `monitor`, or what None stands for."""
        return self.monitor or ("val/mAP" if self.task == "multilabel" else "val/accuracy")

    @property
    def pretrained(self) -> bool:
        """Whether the backbone starts from pretrained weights."""
        return self.weights != "none" or self.start_from is not None

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the model's input."""
        auto = "caffe" if self.pretrained else "torch"
        mode = auto if self.preprocess == "auto" else self.preprocess
        return Preprocessing(
            mode,
            self.image_size,
            self.resize,
            self.interpolation,
            self.background,
            (self.pixel_range[0], self.pixel_range[1]) if self.pixel_range else None,
        )

    @property
    def augmentation(self) -> Augmentation:
        """Augmentation of the training images: the settings, over those of the preset."""
        return resolve(self, self.augment)

    def to_json(self) -> str:
        """Return every field as JSON, the text of `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read what `to_json` returned.

        Raises:
            ConfigError: not a JSON object, or an unknown key.
        """
        try:
            return cls.from_fields(json.loads(text))
        except json.JSONDecodeError as error:
            raise _damaged(error) from None

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Config":
        """Make the settings from saved fields; raise ConfigError as `from_json` does."""
        try:
            names = [field.name for field in dataclasses.fields(cls)]
            for name in fields:
                if name not in names:
                    raise ConfigError(unknown_name("setting", name, names))
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise _damaged(error) from None

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Return the fields that would change the result: {name: (own value, other's value)}.

        The same augmentation by preset or by settings is no difference, nor is the same number of
        epochs or the same metric by default or given.
        """
        ignored = set(RESUME_MUTABLE_FIELDS)
        if self.num_epochs == other.num_epochs:
            ignored.add("epochs")
        if self.best_metric == other.best_metric:
            ignored.add("monitor")
        if "auto" in (self.batch_size, other.batch_size):
            ignored.add("batch_size")
        if self.augmentation == other.augmentation:
            ignored |= {"augment", *AUGMENTATION_FIELDS}
        names = [field.name for field in dataclasses.fields(self) if field.name not in ignored]
        values = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def read_config(workdir: str | Path) -> Config:
    """Read the `config.json` of a run folder.

    Raises:
        ConfigError: no such folder or file, or it is damaged.
    """
    path = Path(workdir) / "config.json"
    try:
        return Config.from_fields(read_json(path))
    except OSError:
        raise ConfigError(
            f"{printable(workdir)} is not a run folder: it has no readable config.json. Give the "
            "folder of a run as `workdir`."
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{printable(path)}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{printable(path)}: {_damaged(error)}") from None


def _damaged(error: Exception) -> ConfigError:
    return ConfigError(
        f"the saved settings are damaged ({error}). Restore the file from a backup, or train again "
        "in another `workdir`."
    )


def name_stage(unfreeze: tuple[str, ...]) -> str:
    """Return a stage's name, what trains in it: `head`, `head+block5`."""
    return "+".join(["head", *(name for name in unfreeze if name != "none")])


def parse_stages(texts: Sequence[str], layers: Sequence[str]) -> tuple[Stage, ...]:
    """Parse `stages`; `layers` are the backbone's layers with parameters.

    Raises:
        ConfigError: another form, an unknown layer, or a stage that unfreezes nothing new.
    """
    stages: list[Stage] = []
    unfrozen: tuple[str, ...] = ()
    for text in texts:
        names, colon, epochs = text.rpartition(":")
        if not colon or not all(names.split("+")) or not (epochs.isascii() and epochs.isdigit()):
            raise ConfigError(
                "`stages` are written LAYERS:EPOCHS, epochs a whole number, as in head:5 block5:20 "
                f"block4:10; got {text!r}."
            )
        if int(epochs) == 0:
            raise ConfigError(f"A stage has at least one epoch; got `stages` {text}. Leave it out.")
        added = tuple(name for name in names.split("+") if name != "head")
        for name in added:
            _check_name(name, layers)
        if stages and set(match_layers(added, layers)) <= set(match_layers(unfrozen, layers)):
            raise ConfigError(
                f"The stage {text} in `stages` unfreezes nothing new after {stages[-1].name}. "
                "Leave it out and give that one more epochs."
            )
        unfrozen = ("all",) if "all" in added else (*unfrozen, *added)
        first_epoch = sum(stage.epochs for stage in stages)
        stage = Stage(name_stage(unfrozen), unfrozen or ("none",), first_epoch, int(epochs))
        stages.append(stage)
    return tuple(stages)


def _check_name(name: str, layers: Sequence[str]) -> None:
    try:
        if name != "none":  # which is `head` here
            match_layers((name,), layers)
            return
    except ConfigError:
        pass
    blocks = dict.fromkeys(layer.split("_")[0] for layer in layers if "_" in layer)
    raise ConfigError(unknown_name("layer in `stages`", name, ("head", "all", *blocks, *layers)))
