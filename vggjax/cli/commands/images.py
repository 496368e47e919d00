"""Images given to a network."""

from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vggjax.data.stream.options import DEFAULT_STREAM_OPTIONS, StreamOptions
from vggjax.evaluation.predict_options import DEFAULT_PREDICT_OPTIONS, PredictOptions
from vggjax.features.embed_options import DEFAULT_EMBED_OPTIONS, EmbedOptions


def predict(
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE [IMAGE ...]")],
    /,
    *,
    options: Annotated[PredictOptions, arg(name="")] = DEFAULT_PREDICT_OPTIONS,
    stream: Annotated[StreamOptions, arg(name="")] = DEFAULT_STREAM_OPTIONS,
) -> int:
    """Classify images.

    Exit code 0: all of them; 3: some were left out, each named with its reason; 2: none.

    Args:
        images: Files, folders, globs, lists (.txt), tar shards and Parquet files; - reads names
            from the standard input.
        options: Which model predicts, how, and where the predictions go.
        stream: Which part of the images is taken, and what computes it.
    """
    from vggjax.evaluation.predict_files import predict_command

    return predict_command(list(images), options, stream=stream)


def embed(
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE [IMAGE ...]")],
    /,
    *,
    out: str,
    options: Annotated[EmbedOptions, arg(name="")] = DEFAULT_EMBED_OPTIONS,
    stream: Annotated[StreamOptions, arg(name="")] = DEFAULT_STREAM_OPTIONS,
) -> int:
    """Write a vector for each image: a layer's output, pooled.

    Exit code 0: all of them; 3: some were left out, each named with its reason; 2: none. A command
    that was ended continues where it stood.

    Args:
        images: Files, folders, globs, lists (.txt), tar shards and Parquet files; - reads names
            from the standard input.
        out: The file to write, .npz or .parquet: names, vectors, and how they were made.
        options: Which layer of which model is computed.
        stream: Which part of the images is taken, and what computes it.
    """
    from vggjax.features.embed_files import embed_command

    return embed_command(list(images), out, options, stream=stream)


def similar(
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="[IMAGE ...] INDEX")],
    /,
    *,
    top: int = 10,
    duplicates: bool = False,
    outliers: bool = False,
    threshold: float = 0.94,
) -> int:
    """Find similar images in a file of `vggjax embed`, its near-duplicates or its outliers.

    Args:
        images: Images to search with, of the index or new, then the index.
        top: Number of images to print.
        duplicates: Print groups of near-duplicates in place of a search.
        outliers: Print the images that are least like any others.
        threshold: The cosine similarity from which on two images are near-duplicates.
    """
    from vggjax.features.similar import similar_command

    options: dict[str, Any] = {"duplicates": duplicates, "outliers": outliers}
    return similar_command(list(images), top=top, threshold=threshold, **options)


def stylize(
    content: Annotated[Positional[str], arg(metavar="CONTENT")],
    style: Annotated[Positional[str], arg(metavar="STYLE")],
    out: Annotated[Positional[str], arg(metavar="OUT.png")],
    /,
    *,
    model: str = "vgg16",
    weights: str = "imagenet",
    size: int = 384,
    style_weight: float = 10.0,
    smoothness: float = 0.0,
    steps: int = 100,
    optimizer: Literal["lbfgs", "adam"] = "lbfgs",
    preview_every: int = 10,
) -> int:
    """Give an image the style of another, by the method of Gatys et al. (2016).

    Args:
        content: The image to change.
        style: The image whose style it gets.
        out: The PNG to write, also while the work goes on.
        model: The network, such as vgg16 or vgg19.
        weights: `imagenet` or a weight file.
        size: The long side in px of the result, and of the style.
        style_weight: The weight of the style beside the content.
        smoothness: The weight of the total variation, against noise.
        steps: Steps of the optimizer.
        optimizer: lbfgs needs fewer steps, adam less memory.
        preview_every: Steps between two states of OUT.png.
    """
    from vggjax.features.stylize import stylize_command

    options: dict[str, Any] = {"model": model, "weights": weights, "size": size, "steps": steps}
    options |= {"style_weight": style_weight, "smoothness": smoothness}
    options |= {"optimizer": optimizer, "preview_every": preview_every}
    return stylize_command(content, style, out, **options)
