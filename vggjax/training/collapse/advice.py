"""Why a training may have collapsed, and the flags that would mend it, with their values.

All from the settings: the rate, what is unfrozen at once, the pixels, the network. The likeliest
comes first; nothing is advised that the run has already.
"""

from vggjax.training.config import Config
from vggjax.training.freezing import peak_rates
from vggjax.training.stages import Stage

USUAL_RATES = {"sgd": (1e-3, 1e-1)}
"""Rates between which a training usually goes well: sgd; for the others 1e-5 to 1e-3."""


def causes_and_advice(
    config: Config, stage: Stage, *, finite: bool = True, factor: float = 1.0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Gives what may be wrong, as half sentences, and what to do, as words of the command line.

    Args:
        config: of the run.
        stage: the one that collapsed.
        finite: False where the loss is not finite, which a rate too low cannot bring about.
        factor: what the rates are multiplied by at present.
    """
    causes: list[str] = []
    advice: list[str] = []
    rates = {name: rate * factor for name, rate in peak_rates(config).items()}
    rate = rates["head"]
    _, high = USUAL_RATES.get(config.optimizer, (1e-5, 1e-3))
    unfrozen = stage.unfreeze != ("none",)
    published = config.weights == "imagenet" and config.start_from is None
    if published and config.preprocessing.mode != "caffe":
        causes.append(
            f"--preprocess {config.preprocess} gives other pixels than the weights were trained on"
        )
        advice.append("--preprocess auto")
    if not config.pretrained and config.unfrozen != ("all",):
        causes.append("the frozen layers are random (--weights none)")
        advice.append("--unfreeze all")
    if finite and is_slow(config, factor):
        causes.append(f"the rate {rate:.2g} is low for {config.optimizer}")
        advice.append(f"--learning-rate {rate * 10:.2g}")
    else:
        word = "high for" if rate > high else "perhaps too high, with"
        causes.append(f"the rate {rate:.2g} is {word} {config.optimizer}")
        advice.append(f"--learning-rate {rate / 10 if rate <= 100 * high else high:.2g}")
    if unfrozen and config.pretrained:
        if stage.first_epoch == 0 and config.start_from is None:
            causes.append(
                "pretrained layers were unfrozen at once, below a new head whose first gradients "
                "wreck them"
            )
            advice.append(_stages(config))
        if rates["backbone"] > 0.1 * rate:
            causes.append(
                f"pretrained layers learn at {rates['backbone']:.2g}, as fast as the head"
            )
            advice.append(f"--backbone-learning-rate {rate / 1000:.2g}")
    if not config.warmup_epochs:
        causes.append("the rate is at its highest from the first step")
        advice.append("--warmup-epochs 1")
    if not config.clip_norm:
        advice.append("--clip-norm 1")
    if not config.pretrained and not config.model.endswith("_bn") and "vgg" in config.model:
        causes.append(f"{config.model} from scratch has no batch normalization to keep it alive")
        advice.append(f"--model {config.model}_bn")
    return tuple(causes), tuple(advice)


def is_slow(config: Config, factor: float) -> bool:
    """Says whether the rate is lower than usual, so that a lower one would be no cure."""
    low, _ = USUAL_RATES.get(config.optimizer, (1e-5, 1e-3))
    return config.learning_rate * factor < low


def _stages(config: Config) -> str:
    """Writes stages of the same epochs in all, the head alone first."""
    epochs = config.num_epochs
    head = max(1, epochs // 3)
    rest = max(1, epochs - head)
    if config.unfrozen == ("all",):
        deep, last = max(1, rest // 2), config.base_layers[-1].split("_")[0]
        return f"--stages head:{head} {last}:{deep} all:{max(1, rest - deep)}"
    return f"--stages head:{head} {'+'.join(config.unfrozen)}:{rest}"
