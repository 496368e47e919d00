"""A finished run for others: exported, described, published, served."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def export(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    license: str | None = None,
) -> int:
    """Export a run's classifier for another runtime: ONNX, StableHLO, Keras, LiteRT, torch.

    Args:
        run: The finished run's folder, or hf://user/name.
        out: The file to write, by its ending: .onnx (takes images of any size), .stablehlo, .keras,
            .tflite or .pt2 (take resized images); a new name without an ending is a SavedModel.
        license: The license of the weights, for the metadata; by default what the run records.
    """
    from vggjax.export.export import export_run, print_export

    print_export(export_run(run, out, license=license))
    return 0


def push(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    repo: Annotated[Positional[str], arg(metavar="USER/NAME")],
    /,
    *,
    public: bool = False,
    license: str | None = None,
) -> int:
    """Push a run to the Hugging Face Hub: weights, model.json and model card.

    `--weights hf://USER/NAME` trains on from it, `--workdir hf://USER/NAME` predicts with it, and
    `vggjax serve`, `demo` and `export` take hf://USER/NAME in place of a folder.

    Args:
        run: The finished run's folder.
        repo: The repository; it is made if there is none, private, and its files are replaced.
        public: Make a new repository public. One that is there keeps its visibility.
        license: The license of the weights, for the card, such as apache-2.0.
    """
    from vggjax.export.push import print_pushed, push_run

    print_pushed(push_run(run, repo, public=public, license=license))
    return 0


def card(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    /,
    *,
    out: Path | None = None,
    license: str | None = None,
) -> int:
    """Write a run's model card: data, splits, figures with intervals, preprocessing, license.

    Args:
        run: The finished run's folder.
        out: The file, .md; by default README.md in the run's folder.
        license: The license of the weights; by default what the run records.
    """
    from vggjax.errors import printable
    from vggjax.export.card import write_card

    print(f"Card     {printable(write_card(run, out=out, license=license))}")
    return 0


def serve(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    max_body_mb: int = 32,
    max_files: int = 32,
    max_megapixels: int = 64,
    max_queue: int = 256,
    timeout_s: float = 30.0,
) -> int:
    """Serve a run's classifier over HTTP: POST /predict, /health, /metrics, and a page, /docs.

    Args:
        run: The finished run's folder, or hf://user/name.
        host: The address to listen on. One that other machines reach needs a token.
        port: The port; 0 takes a free one.
        token_file: A file with the token that requests must carry; by default the environment
            variable VGGJAX_TOKEN, if it is set.
        max_body_mb: Largest request, in MiB.
        max_files: Most images of one request.
        max_megapixels: Largest image, in million pixels.
        max_queue: Most images that are held at once; further requests are answered with 503.
        timeout_s: Seconds for a request, from its head to its answer.
    """
    from vggjax.serve.command import run_service
    from vggjax.serve.limits import Limits

    limits = Limits(max_body_mb, max_files, max_megapixels, max_queue, timeout_s)
    return run_service(run, host=host, port=port, token_file=token_file, limits=limits)


def demo(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token_file: Path | None = None,
) -> int:
    """Show a page in the browser: drop an image, get its classes and a Grad-CAM map.

    Args:
        run: The finished run's folder, or hf://user/name.
        host: The address to listen on. One that other machines reach needs a token.
        port: The port; 0 takes a free one.
        token_file: A file with the token, the password to log in with; by default the environment
            variable VGGJAX_TOKEN, if it is set.
    """
    from vggjax.serve.command import run_demo

    return run_demo(run, host=host, port=port, token_file=token_file)
