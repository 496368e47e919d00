"""The service answers as `predict` does, keeps to its limits, and never fails on what is sent."""

import json
import re
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from support.service import Gate, encode, running
from support.tiny_run import PASS_RTOL, make_images, make_run

import vggjax
from vggjax.errors import ConfigError
from vggjax.evaluation.predict import load_run
from vggjax.serve.limits import Limits, bind, read_token
from vggjax.serve.pipeline import _batch_images

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    return make_run(root / "run", make_images(root / "images", each=4), split="0.5,0.25,0.25")


@pytest.fixture(scope="module")
def classifier(run):
    return load_run(run)


@pytest.fixture(scope="module")
def service(classifier):
    with running(classifier, max_body_mb=1, max_files=4, max_megapixels=1) as service:
        yield service


@pytest.fixture(scope="module")
def photos(run):
    return sorted((run.parent / "images").rglob("*.png"))


@pytest.fixture
def gate(classifier):
    return Gate(classifier)


def talk(service, data: bytes) -> bytes:
    """Send bytes, and return what is answered until the service closes the connection."""
    host, port = service.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def error_of(answer: requests.Response) -> str:
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


def test_images_get_the_probabilities_of_predict_in_the_order_of_the_request(
    service, classifier, photos
):
    sent = [photos[0], photos[5], photos[9]]
    answer = service.predict(*((p.name, p.read_bytes()) for p in sent), query="?probabilities=1")
    expected = classifier.predict(sent)
    records = answer.json()["predictions"]
    assert [record["path"] for record in records] == [p.name for p in sent]
    assert [record["class"] for record in records] == expected.names
    for record, row in zip(records, expected.probs, strict=True):
        assert tuple(record["probabilities"]) == expected.class_names
        received = [*record["probabilities"].values()]
        np.testing.assert_allclose(received, row, rtol=PASS_RTOL, atol=1e-6)
        top = record["top"]
        assert [t["class"] for t in top] == [expected.class_names[i] for i in np.argsort(-row)]
        assert top[0] == {"class": record["class"], "probability": record["probability"]}


def test_requests_at_once_each_get_their_own_answer_from_few_sizes_of_batches(gate, photos):
    with running(gate) as service, ThreadPoolExecutor(8) as clients:
        sizes, alone = set(gate.rows), {}
        for path in photos:
            alone[path] = service.predict(path.read_bytes()).json()
        gate.close()
        first = clients.submit(service.predict, photos[0].read_bytes())
        assert gate.entered.wait(60)
        others = {p: clients.submit(service.predict, p.read_bytes()) for p in photos[1:8]}
        while _held(service) < 8:
            pass
        gate.rows.clear()
        gate.open.set()
        assert first.result().json() == alone[photos[0]]
        for path, answer in others.items():
            (received,), (expected,) = answer.result().json().values(), alone[path].values()
            assert received[0]["class"] == expected[0]["class"]
            share = expected[0]["probability"]
            assert received[0]["probability"] == pytest.approx(share, rel=PASS_RTOL, abs=2e-6)
        assert gate.rows == [8]  # the 7 that waited, in one batch
        assert sizes == {1, 2, 4, 8, 16, 32}


def _held(service) -> int:
    return int(
        float(re.search(r"^vggjax_held_images (\S+)", service.get("/metrics").text, re.M)[1])
    )


def test_a_batch_has_at_most_a_quarter_of_padding_and_takes_what_waits_in_turn():
    for most in (1, 2, 8, 32):
        for waiting in range(1, 70):
            taken = _batch_images(waiting, most)
            rows = 1 << (taken - 1).bit_length()
            assert 1 <= taken <= min(waiting, most)
            assert rows <= most and 4 * taken >= 3 * rows
            assert 2 * taken > min(waiting, most)


def test_an_image_that_predict_refuses_is_refused_for_the_same_reason(service, run, tmp_path):
    rng = np.random.default_rng(0)
    jpeg = encode(rng.integers(0, 255, (40, 40, 3)), "JPEG")
    files = {"cut.jpg": jpeg[:400], "empty.png": b"", "text.jpg": b"hello", "flipped.png": jpeg}
    files["flipped.png"] = encode(np.zeros((9, 9, 3)))[:40] + b"\xff" * 40
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(vggjax.DataError) as refused:
            vggjax.load_run(run).predict([tmp_path / name])
        reason = str(refused.value).partition("cannot be used: ")[2].rstrip(".")
        answer = service.predict((name, data))
        assert answer.status_code == 422
        assert reason in error_of(answer) and name in error_of(answer)


def test_the_good_images_of_a_request_are_classified_beside_bad_ones(service, photos):
    good = photos[0].read_bytes()
    answer = service.predict(("a.png", good), ("b.png", good[:99]))
    first, second = answer.json()["predictions"]
    assert answer.status_code == 200
    assert first["class"] and second == {"path": "b.png", "error": "truncated"}


def test_what_is_too_large_is_refused_before_it_costs_anything(service):
    zeros = zlib.compress(bytes(10**6))
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zeros), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    answer = service.predict(bomb)
    assert answer.status_code == 422 and "pixels" in error_of(answer)
    over = encode(np.zeros((1001, 1000, 3)))
    answer = service.predict(over)
    assert answer.status_code == 422
    assert "1000x1001, at most 1,000,000 pixels" in error_of(answer)
    assert service.predict(encode(np.zeros((1000, 1000, 3)))).status_code == 200

    assert service.predict(bytes(2**20)).status_code == 413
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    part = b"--x\r\nContent-Disposition: form-data; name=images; filename=a\r\n\r\n"
    chunks = [part, *[bytes(2**16)] * 16]  # without a length and without an end
    answer = talk(service, head + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks))
    assert b" 413 " in answer
    answer = service.predict(*[b"x"] * 5)
    assert answer.status_code == 422 and "more than 4 images" in error_of(answer)


def test_a_full_queue_answers_503_with_the_seconds_to_wait_and_later_answers_again(gate, photos):
    data = photos[0].read_bytes()
    with running(gate, max_queue=2, max_files=2) as service, ThreadPoolExecutor(2) as clients:
        gate.close()
        held = [clients.submit(service.predict, data) for _ in range(2)]
        while _held(service) < 2:
            pass
        answer = service.predict(data)
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
        assert "Try again in" in error_of(answer)
        assert service.get("/health").json() == {"status": "ok"}
        gate.open.set()
        assert [future.result().status_code for future in held] == [200, 200]
        assert service.predict(data).status_code == 200 and _held(service) == 0


def test_a_request_that_takes_too_long_is_given_up_and_leaves_nothing_behind(gate, photos):
    data = photos[0].read_bytes()
    with running(gate, timeout_s=0.2) as service:
        gate.close()
        assert "No answer within 0.2 s" in error_of(service.predict(data, data))
        gate.open.set()
        while _held(service):
            pass

        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
        head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        answer = talk(service, head)
        assert b" 408 " in answer and b"not complete within 0.2 s" in answer


def test_requests_in_flight_are_answered_when_the_service_stops(gate, photos):
    with running(gate) as service, ThreadPoolExecutor(1) as clients:
        gate.close()
        answer = clients.submit(service.predict, photos[0].read_bytes())
        assert gate.entered.wait(60)
        service.server.should_exit = True
        with pytest.raises(requests.ConnectionError):
            while True:
                service.get("/health")
        gate.open.set()
        assert answer.result().status_code == 200


def test_without_the_token_nothing_but_health_and_the_description_is_answered(classifier, photos):
    data = photos[0].read_bytes()
    with running(classifier, token=TOKEN) as service:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            for answer in (
                service.predict(data, headers=headers),
                service.get("/metrics", headers=headers),
            ):
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "Authorization: Bearer" in error_of(answer)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert service.predict(data, headers=headers).status_code == 200
        assert service.get("/metrics", headers=headers).status_code == 200
        for path in ("/health", "/docs", "/openapi.json"):
            assert service.get(path).status_code == 200
        assert "HTTPBearer" in service.get("/openapi.json").json()["components"]["securitySchemes"]


def test_mistakes_are_answered_in_json_with_the_way_out_and_no_path_of_the_server(service, run):
    form = {"Content-Type": "multipart/form-data"}
    address = f"{service.address}/predict"
    answers = {
        "GET /health": service.get("/nix"),
        "POST /predict": service.get("/predict"),
        "greater than or equal to 1": service.predict(b"x", query="?top=0"),
        "multipart/form-data": requests.post(address, data=b"x", timeout=60),
        "curl -F images=@": requests.post(address, data=b"x", headers=form, timeout=60),
        "?top=3": requests.post(address, files={"top": (None, "3")}, timeout=60),
        "each called images": requests.post(address, files={"photo": b"x"}, timeout=60),
        "The image cannot be used": service.predict((f"{run}/../..\x7f", b"x")),
    }
    for way_out, answer in answers.items():
        assert 400 <= answer.status_code < 500
        assert way_out in error_of(answer)
    texts = [*(a.text for k, a in answers.items() if k[0] != "T"), service.get("/metrics").text]
    texts.append(json.dumps(service.get("/openapi.json").json()))
    for text in texts:
        assert str(run) not in text and str(Path(vggjax.__file__).parent) not in text


def test_metrics_count_requests_by_path_and_status_and_images_by_outcome(classifier, photos):
    with running(classifier) as service:
        service.predict(photos[0].read_bytes(), photos[1].read_bytes(), b"x")
        service.get(f"/{'x' * 99}")
        text = service.get("/metrics").text
    for line in (
        'vggjax_requests_total{path="/predict",status="200"} 1.0',
        'vggjax_requests_total{path="other",status="404"} 1.0',
        'vggjax_images_total{outcome="classified"} 2.0',
        'vggjax_images_total{outcome="unusable"} 1.0',
        "vggjax_batch_images_sum 2.0",
        "vggjax_held_images 0.0",
    ):
        assert f"\n{line}\n" in text


def test_an_address_that_others_reach_needs_a_token(monkeypatch, tmp_path):
    monkeypatch.delenv("VGGJAX_TOKEN", raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert read_token(None, host=host) is None
    for host in ("0.0.0.0", "::", "192.168.0.1", "photos.example"):
        with pytest.raises(ConfigError, match="token: set VGGJAX_TOKEN or give `token_file`"):
            read_token(None, host=host)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file, host="0.0.0.0") == TOKEN
    monkeypatch.setenv("VGGJAX_TOKEN", "another-long-token")
    assert read_token(None, host="127.0.0.1") == "another-long-token"
    assert read_token(file, host="127.0.0.1") == TOKEN
    for content, reason in (("", "empty"), ("short", "5 characters"), ("ü" * 20, "ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=reason):
            read_token(file, host="127.0.0.1")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_token(tmp_path / "missing", host="127.0.0.1")


def test_a_port_that_is_in_use_is_refused_with_the_way_out():
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} of 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="from 0 to 65535; got 70000"):
        bind("127.0.0.1", 70_000)
    with pytest.raises(ConfigError, match="is no address of this machine"):
        bind("no.such.host.invalid", 0)


def test_limits_that_would_refuse_everything_are_refused():
    with pytest.raises(ConfigError, match="`max_files` must be above 0; got 0"):
        Limits(max_files=0)
    with pytest.raises(ConfigError, match="`max_queue` must be at least `max_files`, 32; got 8"):
        Limits(max_queue=8)
