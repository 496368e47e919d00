"""The stretches of a run in which the same layers train, and the words that name them.

A stage is written LAYERS:EPOCHS, as in `head:5 block5:20 block4:10`; LAYERS is `head`, or what
--unfreeze takes, several joined by `+`. What a stage unfreezes stays so in those after it, and the
head always trains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import match_layers


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs in which the same layers train."""

    name: str
    unfreeze: tuple[str, ...]
    first_epoch: int
    epochs: int


def name_stage(unfreeze: tuple[str, ...]) -> str:
    """Names a stage by what trains in it: `head`, `head+block5`."""
    return "+".join(["head", *(name for name in unfreeze if name != "none")])


def parse_stages(texts: Sequence[str], layers: Sequence[str]) -> tuple[Stage, ...]:
    """Reads --stages; `layers` are the base's, those that have parameters.

    Raises:
        ConfigError: no such form, no such layer, or a stage that adds nothing.
    """
    stages: list[Stage] = []
    unfrozen: tuple[str, ...] = ()
    for text in texts:
        words, colon, epochs = text.rpartition(":")
        if not colon or not all(words.split("+")) or not (epochs.isascii() and epochs.isdigit()):
            raise ConfigError(
                "--stages are written LAYERS:EPOCHS, epochs a whole number, as in head:5 "
                f"block5:20 block4:10; got {text!r}."
            )
        if int(epochs) == 0:
            raise ConfigError(f"A stage has one epoch or more; got --stages {text}. Leave it out.")
        added = tuple(word for word in words.split("+") if word != "head")
        for word in added:
            _check_word(word, layers)
        if stages and set(match_layers(added, layers)) <= set(match_layers(unfrozen, layers)):
            raise ConfigError(
                f"--stages {text} adds nothing to {stages[-1].name}, which trains before it. Leave "
                "it out and lengthen that one."
            )
        unfrozen = ("all",) if "all" in added else (*unfrozen, *added)
        first = sum(stage.epochs for stage in stages)
        stage = Stage(name_stage(unfrozen), unfrozen or ("none",), first, int(epochs))
        stages.append(stage)
    return tuple(stages)


def _check_word(word: str, layers: Sequence[str]) -> None:
    try:
        if word != "none":  # which is `head` here
            match_layers((word,), layers)
            return
    except ConfigError:
        pass
    blocks = dict.fromkeys(name.split("_")[0] for name in layers if "_" in name)
    raise ConfigError(unknown_name("layer in --stages", word, ("head", "all", *blocks, *layers)))
