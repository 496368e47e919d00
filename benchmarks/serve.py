"""Load a service with requests at a fixed rate: answers, latencies, memory.

    python -m benchmarks.serve [--run RUN] [--rate 200] [--seconds 60] [--image FILE]

`vggjax serve` runs in a process of its own; without RUN it serves VGG11 at 32 px, trained on the
digits for one epoch. Each request has one image, FILE or noise of 32 px. Requests are due at fixed
times, whether or not earlier ones were answered, and a latency counts from the time at which its
request was due. Resident memory is read once a second. At the end SIGTERM stops the service.
"""

import argparse
import http.client
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import describe_machine, run_process

CLIENTS = 32
BOUNDARY = "image-boundary"


@dataclass
class Load:
    """What became of the requests."""

    seconds: float = 0.0
    statuses: Counter = field(default_factory=Counter)
    """Status, or the name of an exception, -> requests."""
    latencies_s: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    """Once a second."""
    images_per_batch: float = 0.0
    cpu_s: float = 0.0
    """Of the service's process, in all its threads."""
    exit_code: int | None = None


@contextmanager
def serving(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """Yield the process of a service, and its port."""
    command = [sys.executable, "-m", "vggjax", "serve", str(run), "--port", "0", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        if not (found := re.search(r":(\d+)/predict", line)):
            raise SystemExit(f"the service did not start: {line}")
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def form(image: bytes) -> bytes:
    """Return the body of a request with one image."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.png"'
    return head.encode() + b"\r\n\r\n" + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def noise(size: int = 32) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def load(run: Path, *, rate: float, seconds: float, image: bytes) -> Load:
    """Serve a run, send `rate` requests a second, and stop the service with SIGTERM."""
    result, body = Load(), form(image)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    numbers, lock, count = itertools.count(), threading.Lock(), round(rate * seconds)
    with serving(run) as (process, port):
        begin_s, finished = time.monotonic() + 0.5, threading.Event()

        def send() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while (number := next(numbers)) < count:
                due_s = begin_s + number / rate
                time.sleep(max(0.0, due_s - time.monotonic()))
                try:
                    connection.request("POST", "/predict", body, headers)
                    answer = connection.getresponse()
                    answer.read()
                    outcome = answer.status
                except (OSError, http.client.HTTPException) as error:
                    outcome = type(error).__name__
                    connection.close()
                with lock:
                    result.statuses[outcome] += 1
                    result.latencies_s.append(time.monotonic() - due_s)
            connection.close()

        def watch() -> None:
            status = Path(f"/proc/{process.pid}/status")
            while not finished.wait(1) and status.exists():
                result.resident_mb.append(
                    int(status.read_text().split("VmRSS:")[1].split()[0]) / 1e3
                )

        threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
        watcher = threading.Thread(target=watch)
        for thread in (*threads, watcher):
            thread.start()
        for thread in threads:
            thread.join()
        result.seconds = time.monotonic() - begin_s
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        finished.set()
        watcher.join()
        images, batches, result.cpu_s = (
            float(re.search(rf"^{name} (\S+)", text, re.MULTILINE)[1])
            for name in (
                "vggjax_batch_images_sum", "vggjax_batch_images_count", "process_cpu_seconds_total",
            )
        )  # fmt: skip
        result.images_per_batch = images / max(batches, 1)
        process.send_signal(signal.SIGTERM)
        result.exit_code = process.wait(60)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    image = args.image.read_bytes() if args.image else noise()
    with tempfile.TemporaryDirectory(prefix="vggjax-serve-") as scratch:
        run = args.run or Path(scratch, "run")
        if args.run is None:
            train = ["train", "--epochs", "1", "--workdir", str(run)]
            run_process([sys.executable, "-m", "vggjax", *train])
        result = load(run, rate=args.rate, seconds=args.seconds, image=image)
    latencies = np.sort(result.latencies_s) * 1e3
    sent, rate = len(latencies), len(latencies) / result.seconds
    print(f"sent       {sent:,} requests in {result.seconds:.1f} s: {rate:.1f} a second")
    print(f"answers    {dict(result.statuses)}")
    points = {f"{q:g} %": np.percentile(latencies, q) for q in (50, 95, 99, 100)}
    print("latency    " + ", ".join(f"{name} {value:.1f} ms" for name, value in points.items()))
    print(f"batches    {result.images_per_batch:.2f} images each")
    print(f"CPU time   {result.cpu_s:.1f} s, start and compilation included")
    if memory := result.resident_mb:
        parts = ", ".join(f"{memory[i]:.0f}" for i in (0, len(memory) // 4, len(memory) // 2, -1))
        print(f"resident   {parts} MB at 1 s, 1/4, 1/2 and the end")
    print(f"exit code  {result.exit_code} after SIGTERM")


if __name__ == "__main__":
    main()
