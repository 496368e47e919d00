"""The settings of a run: one frozen dataclass, from which the command line is made.

Each field is a flag of the same name, and its docstring the flag's help. Constructing a Config
checks everything that can be checked without the data. None leaves a value to be derived, as the
field's docstring says; 0 turns a duration or a limit off.
"""

import dataclasses
import json
import os
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
from vggjax.training.run_dir.checked_json import read_json
from vggjax.training.settings.data import DataSettings, InputSettings
from vggjax.training.settings.devices import DeviceSettings
from vggjax.training.settings.model import ModelSettings
from vggjax.training.settings.optimization import OptimizationSettings
from vggjax.training.settings.stages import Stage, StageSettings, parse_stages
from vggjax.weights.digests import expected_sha256

RESUME_MUTABLE_FIELDS = (
    "workdir", "expect_sha256", "data_dir", "cache_mb", "cache_features", "feature_cache_mb",
    "num_threads", "max_unreadable", "devices", "shard_fc", "remat", "log_every_steps",
    "checkpoint_minutes", "tensorboard", "log_to", "lr_find", "on_collapse", "config",
    "coordinator", "num_processes", "process_id",
)  # fmt: skip
"""Fields that may differ when a run is resumed: they change how it runs and not its result.

Cached features agree to the last bit or two, as two compiled programs may round differently; so do
the sums over another number of devices. A run that collapsed may be resumed with another
`on_collapse`.
"""


@dataclass(frozen=True)
class Config(
    OptimizationSettings,
    StageSettings,
    ModelSettings,
    DeviceSettings,
    Augmentation,
    InputSettings,
    DatasetOptions,
    DataSettings,
):
    """The settings of one run: data, augmentation, model, training and bookkeeping.

    A dataclass has the fields of its last base class first, so --help begins with the data.
    """

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
    """Write the log as TensorBoard event files too; the same as --log-to tensorboard."""
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Log the run with these too, each a package of its own, in the project `vggjax` unless its
    environment variables name another (in Python also `callbacks` of `fit`)."""
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
        if self.shard_fc > 1:
            self._check_shards()
        self._check_stages()
        self._check_start()
        self._check_features()
        is_single = self.task == "multiclass" or not self.baselines
        check(self, "baselines", is_single, "left out with several labels per image")
        if self.head_solver == "lbfgs":
            self._check_solver()

    def _check_shards(self) -> None:
        """Check that the head has layers that `shard_fc` can split."""
        check(self, "shard_fc", self.parallel == "jit", "1 if `parallel` is pmap")
        hidden = Head.parse(self.head).hidden
        wanted = "one with hidden layers, as flatten-4096-4096-classes, if `shard_fc` splits them"
        check(self, "head", bool(hidden), wanted)
        for i, width in enumerate(hidden[::2]):  # the layers that are split by their columns
            fits = width % self.shard_fc == 0
            check(self, "shard_fc", fits, f"a divisor of the width of fc{2 * i + 1}, {width}")

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
        why, is_linear = "if `head_solver` is lbfgs", Head.parse(self.head).is_linear
        check(self, "head", is_linear, f"one dense layer, as in convs3-classes, {why}")
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
        return self.epochs or (1 if self.takes_no_steps else 6)

    @property
    def takes_no_steps(self) -> bool:
        """Whether the head is solved at once and nothing else trains."""
        return self.head_solver == "lbfgs" and self.unfrozen == ("none",)

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
    def writes_events(self) -> bool:
        """Whether the log is written as TensorBoard event files too."""
        return self.tensorboard or "tensorboard" in self.log_to

    @property
    def pretrained(self) -> bool:
        """Whether the backbone starts from pretrained weights."""
        return self.weights != "none" or self.start_from is not None

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the model's input."""
        auto: Any = "caffe" if self.pretrained else "torch"
        mode = auto if self.preprocess == "auto" else self.preprocess
        resize = self.image_size, self.resize, self.interpolation
        pixel_range = (self.pixel_range[0], self.pixel_range[1]) if self.pixel_range else None
        return Preprocessing(mode, *resize, self.background, pixel_range)

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


def place_of(value: str) -> str | None:
    """Return the absolute path of what `dataset` or `weights` names; None if that is no path."""
    if value in ("digits", "imagenet", "none") or not Path(value).exists():
        return None
    return os.path.realpath(value)


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
