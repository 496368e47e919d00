"""`StageSettings`: what trains and for how long; the stages that `stages` states."""

from collections.abc import Sequence
from dataclasses import dataclass

from vggjax.data.augment.settings import setting
from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import match_layers


@dataclass(frozen=True)
class Stage:
    """Consecutive epochs in which the same layers train."""

    name: str
    unfreeze: tuple[str, ...]
    first_epoch: int
    epochs: int


@dataclass(frozen=True)
class StageSettings:
    """What trains, and for how many epochs."""

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
