"""Weights fetched over HTTP, against a server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mimbench.download import fetch
from mimbench.errors import UserError

CONTENT = bytes(range(256)) * 5000


class _Mirror(BaseHTTPRequestHandler):
    """/whole gives everything, /short breaks off half-way, anything else is not there."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in ("/whole/encoder.pkl", "/short/encoder.pkl"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if "whole" in self.path else CONTENT[: len(CONTENT) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[tuple[str, list[str]]]:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    handler = type("Mirror", (_Mirror,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_fetched_once_and_whole(mirror):
    address, asked = mirror
    for _ in range(2):
        path = fetch(f"{address}/whole/encoder.pkl")
        assert path.read_bytes() == CONTENT
        assert path.name.endswith("encoder.pkl")
    assert asked == ["/whole/encoder.pkl"]


def test_a_truncated_file_is_not_kept(mirror, tmp_path):
    address, _ = mirror
    with pytest.raises(UserError, match=f"broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes"):
        fetch(f"{address}/short/encoder.pkl")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_what_is_not_there_is_a_sentence_that_names_the_address(mirror):
    address, _ = mirror
    with pytest.raises(UserError, match=rf"cannot fetch {address}/lost: Not Found; check the address"):
        fetch(f"{address}/lost")


def test_a_server_that_does_not_answer_is_a_sentence(mirror):
    with pytest.raises(UserError, match=r"cannot fetch http://127\.0\.0\.1:1/x: .*refused.*; check"):
        fetch("http://127.0.0.1:1/x")
