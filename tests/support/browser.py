"""Drive a headless Chromium over pipes, without a package or a port.

It speaks the Chrome DevTools Protocol: one JSON object per message, each ended by a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


CONNECT = """
import os, sys
reserved = [os.dup(0), os.dup(0)]  # so that the copies below lie beyond 3 and 4
for copy, target in zip([os.dup(int(word)) for word in sys.argv[1:3]], (3, 4)):
    os.dup2(copy, target)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads from 3 and writes to 4. Jax has threads, so this process must not be forked."""


class Browser:
    """A browser with one page.

    Attributes:
        messages: what the page logged or raised since it was opened.
    """

    def __init__(self, profile: Path):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the path")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"]
        command = [program, *options, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONNECT, str(to_read), str(to_write), *command],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self.messages = 0, b"", []
        target = self._call("Target.createTarget", url="about:blank", session=None)["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True, session=None)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, path: Path | str, *, width: int, dark: bool = False) -> None:
        """Open a file or an address at a width in CSS px, in light or dark mode."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.messages.clear()
        self._call("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str):
        """Return the value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str):
        """Return the value of a JavaScript expression once it is true."""
        end = time.monotonic() + 60
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not within a minute: {expression}"
        return value

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in an input of type file."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, *, top: int = 0, height: int | None = None) -> bytes:
        """Return a PNG of the page, of its full height or of a part."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        part = dict(x=0, y=top, width=size["width"], scale=1)
        part["height"] = min(height or size["height"], size["height"] - top)
        shot = self._call("Page.captureScreenshot", clip=part, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def print(self) -> bytes:
        """Return the page as PDF on A4."""
        pdf = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(pdf["data"])

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def _call(self, method: str, *, session: str | None = "own", **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _wait_for(self, event: str) -> None:
        while self._receive().get("method") != event:
            pass

    def _receive(self) -> dict:
        end = time.monotonic() + 60
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            ready, _, _ = select.select([self._read], [], [], max(0, left))
            data = os.read(self._read, 1 << 20) if ready else b""
            assert data, "Chromium ended, or gave no answer within a minute"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(message["params"])
        if message.get("method") == "Runtime.consoleAPICalled":
            self.messages.append(message["params"])
        return message
