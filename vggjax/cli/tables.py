"""The tables that `vggjax summary` and `vggjax recipes` print.

`summary` lists a network's layers as Keras does, with what trains and the memory it takes.
"""

import math
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.convnets import find_arch
from vggjax.models.head import Head
from vggjax.training.recipes import RECIPES, command_of


@dataclass(frozen=True)
class Row:
    """One layer: its output shape for one image, its parameters, and whether they train."""

    layer: str
    output: tuple[int, ...]
    params: int
    statistics: int
    label: str


@dataclass(frozen=True)
class Summary:
    """The rows of a network's table, and the bytes that a training step takes, by kind."""

    image_size: int
    rows: tuple[Row, ...]
    memory: dict[str, int]

    def count(self, label: str | None = None) -> int:
        """Return the number of parameters of the layers with a label (`frozen`, ...), or of all."""
        return sum(row.params for row in self.rows if label in (None, row.label))


def summarize_model(
    arch: str,
    *,
    image_size: int | None = None,
    include_top: bool = True,
    head: Head | None = None,
    unfreeze: tuple[str, ...] = ("none",),
    batch_size: int = 32,
) -> Summary:
    """Describe a network without allocating it; shapes come from `jax.eval_shape`.

    The memory is an estimate for Adam in float32: parameters, two moments of what trains, and its
    gradients or the activations that the backward pass needs, whichever are more, because the
    first gradients come where the last activations go. Activations are kept from the first layer
    that trains (or the input and output of the widest layer, if that is more). What the compiler
    needs beside them is left out.

    Args:
        arch: a name of the table, or a convnet.
        image_size: side in px; None is the network's own, 224 for VGG.
        include_top: with the published 1000-class top.
        head: a custom head instead of the top.
        unfreeze: what trains besides the head.
        batch_size: images in a training step.

    Raises:
        ConfigError: an unknown network or layer, or a size that it cannot take.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from vggjax.models.network import Network
    from vggjax.models.params import shapes
    from vggjax.training.freezing import label_layers

    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be 1 or more; got {batch_size}.")
    size = find_arch(arch).image_size if image_size is None else image_size
    top = include_top and head is None
    model = nnx.eval_shape(lambda: Network(arch, include_top=top, head=head, image_size=size))
    labels = label_layers(model, unfreeze)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda m, x: m(x, taps=m.layers), model, images)
    parameters = shapes(model)
    rows = []
    for layer in model.layers:
        sizes = {name: math.prod(shape) for name, shape in parameters.get(layer, {}).items()}
        statistics = sizes.pop("mean", 0) + sizes.pop("var", 0)
        label = labels.get(layer, "")
        rows.append(Row(layer, outputs[layer].shape[1:], sum(sizes.values()), statistics, label))

    return Summary(size, tuple(rows), _training_memory(rows, size, batch_size))


def _training_memory(rows: list[Row], image_size: int, batch_size: int) -> dict[str, int]:
    """Return the bytes of a training step with Adam in float32, by kind."""
    trained = sum(row.params for row in rows if row.label in ("head", "backbone"))
    first = next((i for i, row in enumerate(rows) if row.label in ("head", "backbone")), len(rows))
    # The input of the first layer that trains is needed for its weights' gradient.
    kept = sum(math.prod(row.output) for row in rows[max(first - 1, 0) :])
    # A forward pass holds a layer's input and output at once, frozen or not.
    activations = [3 * image_size**2, *(math.prod(row.output) for row in rows)]
    widest = max(a + b for a, b in zip(activations, activations[1:], strict=False))
    return {
        "parameters": 4 * sum(row.params + row.statistics for row in rows),
        "gradients": 4 * trained,
        "moments (Adam)": 8 * trained,
        f"activations of {batch_size} images": 4 * max(kept, widest) * batch_size,
    }


def print_summary(summary: Summary, *, title: str, console: Console | None = None) -> None:
    """Print the table, the totals and the memory."""
    console = console or Console()
    table = Table(title=title, title_justify="left")
    table.add_column("Layer", no_wrap=True)
    table.add_column("Output shape", no_wrap=True)
    table.add_column("Parameters", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in summary.rows:
        state = {"": "", "frozen": "frozen"}.get(row.label, f"trainable ({row.label})")
        table.add_row(row.layer, str((None, *row.output)), f"{row.params:,}", state)
    console.print(table)
    statistics = sum(row.statistics for row in summary.rows)
    trained = summary.count("head") + summary.count("backbone")
    lines = [
        f"Total parameters: {summary.count():,}",
        f"Trainable: {trained:,}",
        f"Frozen: {summary.count('frozen'):,}",
    ]
    lines += [f"Running statistics: {statistics:,}"] if statistics else []
    gradients, activations = list(summary.memory.values())[1::2]
    total = sum(summary.memory.values()) - min(gradients, activations)
    parts = ", ".join(f"{name} {_megabytes(size)}" for name, size in summary.memory.items())
    lines.append(
        f"Memory for training: about {_megabytes(total)} ({parts}; the first gradients take the "
        "place of activations). --memory compiles the step and prints what it takes."
    )
    console.print("\n".join(lines), highlight=False)


def describe_step(
    arch: str,
    image_size: int | None,
    batch_size: int,
    *,
    unfreeze: tuple[str, ...],
    include_top: bool,
    head: Head | None,
    devices: int = 1,
    shard_fc: int = 1,
) -> str:
    """Return what the compiled training step takes of each device, with Adam.

    Of several devices it also has what they send one another.

    Raises:
        ConfigError: a network without a head, which nothing can train.
    """
    import jax.numpy as jnp
    from flax import nnx

    from vggjax.models.network import Network
    from vggjax.training.config import Config
    from vggjax.training.devices.collectives import describe_collectives, parse_collectives
    from vggjax.training.devices.memory import abstract_step, memory_of
    from vggjax.training.parallel import Placement, default_dtype

    if head is None and not include_top:
        raise ConfigError("`memory` needs a network that can train: give a `head`.")
    size, dtype = image_size or find_arch(arch).image_size, default_dtype()
    top, kind = head is None, jnp.dtype(dtype)
    model = nnx.eval_shape(
        lambda: Network(arch, include_top=top, head=head, image_size=size, dtype=kind)
    )
    config = Config(
        model=arch, weights="none", image_size=size, unfreeze=unfreeze, head=str(model.head),
        devices=devices, shard_fc=shard_fc,
    )  # fmt: skip
    placement = Placement(num_devices=devices, shard_fc=shard_fc)
    train_step, *arguments = abstract_step(config, model, placement, batch_size)
    compiled = train_step.lower(*arguments).compile()  # type: ignore[attr-defined]
    memory = memory_of(compiled)
    each = " on each" if devices > 1 else ""
    text = (
        f"Compiled for {placement}, {dtype}: {_megabytes(memory.total)}{each} for a step of "
        f"{batch_size} images ({_megabytes(memory.state)} for parameters, moments and the batch, "
        f"{_megabytes(memory.workspace)} of workspace)."
    )
    if devices == 1:
        return text
    sent = describe_collectives(parse_collectives(compiled.as_text()))
    return "\n".join([text, "Each device gets in a step:", *(f"  {line}" for line in sent)])


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"


def print_recipes(console: Console) -> None:
    """Print each recipe's name, title and its author's figure."""
    table = Table(box=None, pad_edge=False)
    table.add_column("Recipe", style="bold", no_wrap=True)
    table.add_column("Lesson", overflow="fold")
    table.add_column("Author's figure", overflow="fold")
    for name, lesson in RECIPES.items():
        table.add_row(name, escape(lesson.title), escape(lesson.figure))
    console.print(table)
    lines = (
        "",
        "Run one:       vggjax train --recipe NAME, and any flag; a flag wins over the recipe.",
        "Describe one:  vggjax recipes NAME",
    )
    console.print("\n".join(lines), markup=False, highlight=False)


def print_recipe(console: Console, name: str) -> None:
    """Print what a recipe teaches, its source, its settings and its command.

    Raises:
        ConfigError: no such recipe; the message has the nearest match.
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name("recipe", name, RECIPES))
    lesson = RECIPES[name]
    settings = [f"{field} {_setting_text(value)}" for field, value in lesson.settings.items()]
    rows = [
        ("Recipe", f"{name}: {lesson.title}"),
        ("Teaches", lesson.teaches),
        ("Source", lesson.source),
        ("Figure", lesson.figure),
        ("Settings", ", ".join(settings)),
        ("Command", command_of(name)),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in rows:
        if text:
            table.add_row(title, escape(text))
    console.print(table)


def _setting_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
