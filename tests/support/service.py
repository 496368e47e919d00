"""A service of a run, answering over a real connection, whose model can be held still."""

import io
import threading
from contextlib import contextmanager

import numpy as np
import requests
import uvicorn
from PIL import Image

from vggjax.serve.app import make_app
from vggjax.serve.limits import Limits


def encode(pixels, format: str = "PNG") -> bytes:
    """Return an image file's content."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, format)
    return stream.getvalue()


class Gate:
    """A classifier whose model stands still while the gate is closed, and that notes its batches.

    Attributes:
        rows: the rows of each batch.
        entered: set when a batch waits at the gate, or has passed it.
    """

    def __init__(self, classifier):
        self._classifier = classifier
        self.info, self.class_names = classifier.info, classifier.class_names
        self.rows, self.open, self.entered = [], threading.Event(), threading.Event()
        self.open.set()

    def classify_pixels(self, pixels):
        self.rows.append(len(pixels))
        self.entered.set()
        assert self.open.wait(60)
        return self._classifier.classify_pixels(pixels)

    def close(self):
        """Let the next batch wait."""
        self.open.clear()
        self.entered.clear()


class Service:
    """Where a service answers."""

    def __init__(self, address: str, server: uvicorn.Server):
        self.address, self.server = address, server

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.address + path, timeout=60, **options)

    def predict(self, *files, query: str = "", **options) -> requests.Response:
        """Send files, each content or (name, content)."""
        named = [file if isinstance(file, tuple) else ("photo.png", file) for file in files]
        form = [("images", file) for file in named]
        address = f"{self.address}/predict{query}"
        return requests.post(address, files=form, timeout=60, **options)


@contextmanager
def running(classifier, *, token: str | None = None, **limits):
    """Yield a `Service` that runs in a thread."""
    app = make_app(classifier, Limits(**limits), token=token)
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none", lifespan="on")
    server, started = uvicorn.Server(config), threading.Event()
    startup = server.startup

    async def note_start(sockets=None):
        await startup(sockets)
        started.set()

    server.startup = note_start
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(60)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Service(f"http://127.0.0.1:{port}", server)
    finally:
        if isinstance(classifier, Gate):
            classifier.open.set()
        server.should_exit = True
        thread.join()
