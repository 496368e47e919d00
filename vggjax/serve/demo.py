"""A page to try a run in a browser: drop an image, get its classes and what speaks for the first.

Gradio draws the page. Nothing leaves the machine: no share link, no analytics, no fonts from
elsewhere; images that were dropped are deleted within an hour.
"""

import contextlib
import os
import threading
from pathlib import Path

import gradio
import numpy as np

from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.errors import DataError, printable
from vggjax.evaluation.grad_cam import grad_cam, map_layer, overlay
from vggjax.evaluation.metrics import top_classes
from vggjax.evaluation.predict import Classifier, load_run
from vggjax.serve.limits import bind, read_token

USER = "vggjax"
"""The name to log in with, where a token is the password."""

TOP = 5
MAX_FILE = "32mb"

_MIN_SIDE_PX = 384  # of the map; a smaller image is enlarged by a whole factor
_KEPT_S = 3600
_FONT = ["system-ui", "sans-serif"]


class Demo:
    """What the page computes for an image."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self._layer = map_layer(classifier.model, classifier.info.preprocessing.image_size)

    def explain(self, file: str | os.PathLike[str]) -> tuple[dict[str, float], np.ndarray]:
        """Return the `TOP` classes and their probabilities, best first, and the first one's map.

        The map is uint8 RGB, over the image as the network sees it.

        Raises:
            DataError: the image cannot be used; the message is the reason alone.
        """
        preprocessing = self.classifier.info.preprocessing
        image = resize_image(self.classifier.read(file).pixels, preprocessing)
        (probs,) = self.classifier.classify_pixels(image[None])
        best = top_classes(probs[None], TOP)[0]
        inputs = preprocess(image[None], preprocessing.mode)
        (heat,) = grad_cam(self.classifier.model, inputs, best[:1], layer=self._layer)
        names = [printable(name) for name in self.classifier.class_names]
        factor = -(-_MIN_SIDE_PX // len(image))
        drawn = overlay(image.repeat(factor, 0).repeat(factor, 1), heat)
        return {names[i]: float(probs[i]) for i in best}, drawn


def make_page(demo: Demo, *, title: str) -> gradio.Blocks:
    """Return the page, which is not served yet."""

    def show(file: str | None) -> tuple[dict[str, float] | None, np.ndarray | None]:
        if file is None:  # removed
            return None, None
        try:
            return demo.explain(file)
        except DataError as error:
            raise gradio.Error(
                f"The image cannot be used: {error}.", print_exception=False
            ) from None

    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=(_KEPT_S // 2, _KEPT_S // 2)
    ) as page:
        gradio.Markdown(
            f"# {title}\n\nDrop an image. The map shows what speaks for the first class."
        )
        with gradio.Row():
            image = gradio.Image(
                label="Image",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                height=_MIN_SIDE_PX,
                buttons=["fullscreen"],
            )
            with gradio.Column():
                classes = gradio.Label(label="Probability", num_top_classes=TOP)
                grad_cam_map = gradio.Image(
                    label="Grad-CAM", format="png", interactive=False, buttons=["download"]
                )
        image.change(show, image, [classes, grad_cam_map], api_visibility="private")
    return page


def serve_demo(
    run: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token_file: Path | None = None,
) -> None:
    """Show the page of a run until Ctrl-C or SIGTERM.

    Args:
        run: the finished run's folder, or `hf://user/name` on a model hub.
        host: the address to listen on; one that other machines reach needs a token.
        port: 0 takes a free one.
        token_file: a file with the token; None reads it from `VGGJAX_TOKEN`, if that is set.

    Raises:
        WeightsError: there is no finished model, or it is damaged.
        ConfigError: an address or a token that cannot be used.
    """
    token = read_token(token_file, host=host)
    with bind(host, port) as listener:
        port = listener.getsockname()[1]
    demo = Demo(load_run(run))
    page = make_page(demo, title=f"{Path(run).resolve().name}: {demo.classifier.info.arch}")
    theme = gradio.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=host,
        server_port=port,
        auth=None if token is None else (USER, token),
        max_file_size=MAX_FILE,
        theme=theme,
        footer_links=[],
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    login = "" if token is None else f"; the user is {USER}, the password the token"
    print(f"Demo     {printable(run)} at {page.local_url}{login}; Ctrl-C stops", flush=True)
    waiting = threading.Event()
    with contextlib.suppress(KeyboardInterrupt):  # of either signal
        while not waiting.wait(0.5):
            pass
    page.close(verbose=False)
