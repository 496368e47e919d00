"""Weight files and networks: convert, verify, summary."""

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    /,
    *,
    format: Literal["vggjax", "torchvision", "timm"] | None = None,
    model: str | None = None,
    expect_sha256: str | None = None,
) -> int:
    """Convert a weight file between the formats of Keras, torchvision, timm and vggjax.

    Args:
        src: The file to read, of any known format (see `vggjax verify --help`), or a run's folder.
        dst: The file to write, by its ending: .safetensors, .weights.h5, .h5, .keras or .pth.
        format: Whose layer names to write; by default vggjax's in .safetensors, torchvision's in
            .pth.
        model: The network that SRC must hold, such as vgg16; None is any, if it is
            complete.
        expect_sha256: Refuse a SRC with another checksum.
    """
    from vggjax.weights.convert import convert

    convert(src, dst, layout=format, model=model, expect_sha256=expect_sha256)
    return 0


def verify(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    *,
    model: str | None = None,
    expect_sha256: str | None = None,
) -> int:
    """Check a weight file: format, layers, checksum, and the pixels that it expects.

    Exit code 0: a VGG's weights, complete and finite; 2: not, with the reason.

    Args:
        file: Keras' or torch's, .safetensors, .onnx, .npz or a pickle of arrays.
        model: The network that it must hold, such as vgg16; None is any.
        expect_sha256: Refuse a file with another checksum.
    """
    from vggjax.weights.verify import print_verification, verify_file

    print_verification(verify_file(file, model=model, expect_sha256=expect_sha256))
    return 0


def summary(
    model: Positional[str] = "vgg16",
    /,
    *,
    image_size: int | None = None,
    include_top: bool = True,
    head: str | None = None,
    unfreeze: tuple[str, ...] = ("none",),
    batch_size: int = 32,
    memory: bool = False,
    devices: int | None = None,
    shard_fc: int = 1,
) -> int:
    """Print a network's layers, parameters and memory.

    Args:
        model: vgg11, vgg13, vgg16, vgg19, with batch normalization vgg11_bn ..., or a convnet.
        image_size: Side of the images in px; None is the network's own, 224 for VGG.
        include_top: The published 1000-class top; --no-include-top leaves it out.
        head: A custom head instead of the top, such as avg2-128-0.4-5.
        unfreeze: What trains besides the head: none, all, blocks, layers.
        batch_size: Images in a training step, for the memory.
        memory: Compile the training step for this machine's device, and print what it takes.
        devices: Compile it for this many devices, which a CPU simulates, and print also what they
            send one another.
        shard_fc: With --devices: split fc1 and fc2 over this many of them, as in training.
    """
    from vggjax.errors import ConfigError
    from vggjax.training.parallel import simulate_devices

    if shard_fc > 1 and not devices:
        raise ConfigError(f"`shard_fc` {shard_fc} needs `devices`, the number of all devices.")
    if devices:
        simulate_devices(devices)
    from vggjax.cli.tables import describe_step, print_summary, summarize_model
    from vggjax.models.head import Head

    model_summary = summarize_model(
        model,
        image_size=image_size,
        include_top=include_top,
        head=Head.parse(head) if head else None,
        unfreeze=unfreeze,
        batch_size=batch_size,
    )
    print_summary(model_summary, title=f"{model}, {model_summary.image_size} px")
    if memory or devices:
        custom = Head.parse(head) if head else None
        what: Any = {"unfreeze": unfreeze, "include_top": include_top, "head": custom}
        what |= {"devices": devices or 1, "shard_fc": shard_fc}
        print(describe_step(model, image_size, batch_size, **what))
    return 0
