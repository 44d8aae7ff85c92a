"""A web server on this machine that stands in for mirrors, and does on request what bad ones do."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What lies under a path, and how it is given.

    ranges: whether parts of it are. breaks: after how many bytes each answer in turn breaks off.
    announced: a length other than the true one. chunked: none is announced. status, headers: unusual ones.
    during: called before the body is sent. after: waited for before the connection ends.
    """

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etag: bool = True
    breaks: list[int] = field(default_factory=list)
    announced: int | None = None
    chunked: bool = False
    during: Callable[[], object] | None = None
    after: threading.Event | None = None


@dataclass
class Web:
    """address: of the server. files: by path. asked: (path, headers) of each request."""

    address: str
    files: dict[str, Served] = field(default_factory=dict)
    asked: list[tuple[str, Message]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def put(self, path: str, content: bytes = b"", **more: object) -> str:
        """Serve ``content`` under ``path``; its address."""
        self.files[path] = Served(content, **more)  # type: ignore[arg-type]
        return self.address + path


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def do_GET(self) -> None:
        self.web.asked.append((self.path, self.headers))
        served = self.web.files.get(self.path) or self.web.files.get(self.path.partition("?")[0])
        if served is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.md5(served.content).hexdigest()}"'
        start, status = 0, served.status
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if (
            wanted
            and served.ranges
            and status == 200
            and condition in (None, etag, served.headers.get("Last-Modified"))
        ):
            start, status = int(wanted[1]), 206
        body = served.content[start:]
        self.send_response(status)
        if served.etag:
            self.send_header("ETag", etag)
        if status == 206:
            whole = len(served.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if served.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            length = len(body) if served.announced is None else served.announced
            self.send_header("Content-Length", str(length))
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if served.during:
            served.during()
        if served.breaks:
            body = body[: served.breaks.pop(0)]
        try:
            if served.chunked:
                for at in range(0, len(body), 1 << 16):
                    piece = body[at : at + (1 << 16)]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                body = b"0\r\n\r\n"
            self.wfile.write(body)
            self.wfile.flush()
            if served.after:
                served.after.wait(30)
        except (BrokenPipeError, ConnectionResetError):  # the client has seen enough
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Web]:
    """A server for the length of a test."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.web = web = Web(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    # Asks often whether to stop: at half a second, the default, most of a test would be its end.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
