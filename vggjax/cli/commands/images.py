"""Images given to a trained network."""

from typing import Annotated

from tyro.conf import Positional, arg


def predict(
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE [IMAGE ...]")],
    /,
    *,
    workdir: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    top: int = 5,
    csv: str | None = None,
    probabilities: bool = False,
    json: bool = False,
    sort_into: str | None = None,
    expect_sha256: str | None = None,
) -> int:
    """Classify images.

    Exit code 0: all of them; 3: some were left out, each named with its reason; 2: none.

    Args:
        images: Files, folders and globs; - reads names from the standard input.
        workdir: A finished run's folder; without it, and without weights, the newest in runs/.
        weights: `imagenet` or a file with the published 1000-class top, in place of a run.
        model: The network of the weights, such as vgg16.
        top: Number of classes to print for each image.
        csv: A file to write a row per image to, as it comes; a file that is there is continued.
        probabilities: A column per class in the CSV in place of the top classes, and in the JSON.
        json: Print a JSON object per image, one a line, instead of the table.
        sort_into: A folder to copy the images into, one folder per class.
        expect_sha256: Refuse weights whose file has another checksum.
    """
    from vggjax.evaluation.predict_files import predict_command

    return predict_command(
        list(images),
        workdir=workdir,
        weights=weights,
        model=model,
        top=top,
        csv=csv,
        probabilities=probabilities,
        json=json,
        sort_into=sort_into,
        expect_sha256=expect_sha256,
    )
