"""Files fetched over HTTP, against a server on this machine: whole, once, and never from a wrong place."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from mimbench import download, network
from mimbench.download import BLOCK, FetchError, Remote, fetch, fetched
from mimbench.errors import UserError

from ..web import Served, Web, serving

CONTENT = bytes(range(256)) * 12000  # 3 MB, 47 blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF, STEP = 24 * BLOCK, 4 * BLOCK


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[Web]:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as web:
        yield web


def kept(folder: Path) -> list[Path]:
    """Files in the cache beside locks, which stay."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def get(url: str, **known: object) -> bytes:
    with fetched(Remote(url, url, **known)) as path:  # type: ignore[arg-type]
        return path.read_bytes()


def refusal(url: str, **known: object) -> str:
    with pytest.raises(FetchError) as raised:
        get(url, **known)
    assert str(raised.value).startswith(f"{url}: ")
    return str(raised.value).removeprefix(f"{url}: ")


def test_a_file_is_fetched_once_and_whole(web, tmp_path):
    url = web.put("/some/encoder.pkl", CONTENT)
    for _ in range(2):
        path = fetch(url)
        assert path.read_bytes() == CONTENT
        assert path.name == "encoder.pkl"
    assert web.paths == ["/some/encoder.pkl"]
    assert kept(tmp_path) == [path]


def test_how_far_it_is_is_told(web):
    told = []
    fetch(web.put("/encoder.pkl", CONTENT), told.append)
    done = [progress.done for progress in told]
    assert done == sorted(done)
    assert (len(done), done[-1]) == (47, 1.0)
    assert told[-1].stage == "fetching encoder.pkl, 3.07 MB of 3.07 MB"


def test_two_addresses_with_the_same_end_are_two_files(web):
    first, second = web.put("/a/weights.pth", b"one"), web.put("/b/weights.pth", b"two")
    assert (fetch(first).read_bytes(), fetch(second).read_bytes()) == (b"one", b"two")


def test_a_file_that_breaks_off_is_completed_without_asking_for_what_is_there(web):
    url = web.put("/encoder.pkl", CONTENT, breaks=[HALF])
    assert get(url, sha256=SHA256) == CONTENT
    assert [headers.get("Range") for _, headers in web.asked] == [None, f"bytes={HALF}-"]


def test_a_file_that_keeps_breaking_off_is_completed_by_the_next_command(web, tmp_path):
    url = web.put("/encoder.pkl", CONTENT, breaks=[STEP] * 4)
    assert refusal(url) == f"it broke off after {4 * STEP:,} of {len(CONTENT):,} bytes (the connection ended)"
    (part,) = [path for path in kept(tmp_path) if path.suffix == ".part"]
    assert part.read_bytes() == CONTENT[: 4 * STEP]
    assert get(url) == CONTENT
    assert web.asked[-1][1]["Range"] == f"bytes={4 * STEP}-"
    assert not part.exists()


def test_a_server_that_gives_no_parts_begins_again(web):
    url = web.put("/encoder.pkl", CONTENT, breaks=[HALF], ranges=False)
    assert get(url) == CONTENT
    assert len(web.asked) == 2


def test_the_rest_of_another_file_is_never_joined_to_the_beginning_of_the_first(web):
    url = web.put("/encoder.pkl", CONTENT, breaks=[STEP] * 4)
    refusal(url)
    other = CONTENT[::-1]
    web.put("/encoder.pkl", other)  # of the same size, with another ETag
    assert get(url) == other


def test_a_date_is_enough_to_know_a_file_by(web):
    """Without an ETag nothing in the answer itself tells that the file is another one by now."""
    old, new = ({"Last-Modified": f"Sun, 0{day} Nov 2026 00:00:00 GMT"} for day in (1, 8))
    url = web.put("/encoder.pkl", CONTENT, etag=False, headers=old, breaks=[STEP] * 8)
    refusal(url)
    web.files["/encoder.pkl"].breaks.clear()
    assert get(url) == CONTENT
    assert web.asked[-1][1]["Range"] == f"bytes={4 * STEP}-"

    url = web.put("/other.pkl", CONTENT, etag=False, headers=old, breaks=[STEP] * 4)
    refusal(url)
    web.put("/other.pkl", CONTENT[::-1], etag=False, headers=new)
    assert get(url) == CONTENT[::-1]


def test_parts_of_two_addresses_are_never_joined(web):
    """The hub at another endpoint, say: the same name, and by chance the same date."""
    headers = {"Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
    first = web.put("/a/x.pkl", CONTENT, etag=False, headers=headers, breaks=[STEP] * 4)
    second = web.put("/b/x.pkl", CONTENT[::-1], etag=False, headers=headers)
    with pytest.raises(FetchError), fetched(Remote("hf:x.pkl", first)):
        pass
    with fetched(Remote("hf:x.pkl", second)) as path:
        assert path.read_bytes() == CONTENT[::-1]


def test_a_server_that_ignores_the_condition_is_seen_through(web):
    """It gives a range of what lies there now, whatever was asked for."""
    url = web.put("/encoder.pkl", CONTENT, breaks=[STEP] * 4)
    refusal(url)
    other = CONTENT[::-1]
    headers = {"Content-Range": f"bytes {4 * STEP}-{len(CONTENT) - 1}/{len(CONTENT)}"}
    web.put("/encoder.pkl", other, status=206, headers=headers)
    assert "206" in refusal(url)
    web.put("/encoder.pkl", other)
    assert get(url) == other


def test_what_cannot_be_known_again_is_not_kept(web, tmp_path):
    url = web.put("/encoder.pkl", CONTENT, etag=False, breaks=[HALF])
    assert "it broke off" in refusal(url)
    assert kept(tmp_path) == []


def test_a_part_that_is_whole_but_for_its_name_is_not_asked_for_again(web, tmp_path):
    """The process ended between the last byte and the renaming."""
    url = web.put("/encoder.pkl", CONTENT)
    path = fetch(url)
    path.rename(path.with_name("encoder.pkl.part"))
    note = {"url": url, "validator": '"x"', "total": len(CONTENT)}
    path.with_name("encoder.pkl.part.json").write_text(json.dumps(note))
    assert get(url) == CONTENT
    assert len(web.asked) == 1


def test_another_file_than_the_known_one_is_refused_with_both_sums_and_deleted(web, tmp_path):
    url = web.put("/encoder.pkl", CONTENT)
    other = "0" * 64
    assert refusal(url, sha256=other) == f"it gave another file, its sha256 is {SHA256}, expected {other}"
    assert kept(tmp_path) == []


def test_a_cached_file_that_is_not_the_known_one_is_fetched_anew(web):
    url = web.put("/encoder.pkl", CONTENT)
    fetch(url).write_bytes(b"damaged")
    assert get(url, sha256=SHA256) == CONTENT


def test_another_size_than_the_known_one_is_refused_before_anything_is_read(web, tmp_path):
    url = web.put("/encoder.pkl", CONTENT)
    assert refusal(url, size=17) == f"it has {len(CONTENT):,} bytes there, expected 17"
    assert kept(tmp_path) == []


def test_a_server_that_does_not_stop_sending_is_stopped(web, tmp_path):
    url = web.put("/encoder.pkl", CONTENT, chunked=True)
    assert refusal(url, size=1000) == "it sends more than the 1,000 bytes that it should have"
    assert kept(tmp_path) == []


def test_a_length_that_is_not_announced_is_fine(web):
    assert get(web.put("/encoder.pkl", CONTENT, chunked=True)) == CONTENT


def test_a_file_larger_than_the_disk_is_refused_before_it_fills_it(web, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "free_bytes", lambda folder: 1 << 28)
    url = web.put("/encoder.pkl", CONTENT)
    with pytest.raises(UserError, match=r"encoder.pkl takes 3.07 MB and .* has 268 MB left; free some"):
        get(url)
    assert kept(tmp_path) == []


def test_a_disk_that_fills_meanwhile_stops_a_file_of_unknown_size(web, tmp_path, monkeypatch):
    free = iter([1 << 30, 1 << 30, 1 << 20])
    monkeypatch.setattr(download, "free_bytes", lambda folder: next(free))
    with pytest.raises(UserError, match=r"has 1\.05 MB left; free some"):
        get(web.put("/encoder.pkl", CONTENT, chunked=True))


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "404 (Not Found)"), (403, "403 (Forbidden)"), (500, "500 (Internal Server Error)"), (799, "799")],
)
def test_what_a_server_refuses_is_a_sentence(web, status, said, tmp_path):
    url = web.put("/encoder.pkl", b"no", status=status)
    assert refusal(url) == f"the server says {said}"
    with pytest.raises(UserError, match=rf"^cannot fetch {url}: the server says .*; check the address"):
        fetch(url)
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/x", "Connection refused"),
        ("http://nowhere.invalid/x", "not known|resolution"),
        ("http://[bad", "."),
        ("http://.x/y", "."),
    ],
)
def test_a_server_that_is_not_there_is_a_sentence(web, url, said):
    with pytest.raises(FetchError, match=rf"{said}.*; check the address") as raised:
        fetch(url)
    assert "object at" not in str(raised.value)
    assert "Max retries" not in str(raised.value)


def test_a_server_that_takes_no_connection_is_given_up_soon(web, monkeypatch):
    monkeypatch.setattr(network, "CONNECTING", 0.05)
    monkeypatch.setattr(network, "SILENT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        assert refusal(url) == "no answer for 0.05 seconds"
    assert network.reason_of(requests.ConnectTimeout()) == "no connection within 0.05 seconds"


def test_a_password_in_an_address_is_not_told(web):
    with pytest.raises(FetchError) as raised:
        fetch("http://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(raised.value)


def test_the_proxy_of_the_environment_is_asked(web, monkeypatch):
    monkeypatch.setenv("http_proxy", web.address)
    monkeypatch.delenv("no_proxy", raising=False)
    url = "http://weights.invalid/encoder.pkl"
    web.files[url] = Served(CONTENT)
    assert get(url) == CONTENT


def test_a_redirect_is_followed_and_a_loop_is_not(web):
    web.put("/encoder.pkl", CONTENT)
    url = web.put("/latest", status=302, headers={"Location": "/encoder.pkl"})
    assert get(url) == CONTENT
    loop = web.put("/loop", status=302, headers={"Location": "/loop"})
    assert refusal(loop) == "it redirects more than 10 times"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
def test_a_redirect_to_what_is_no_web_address_is_refused(web, target):
    url = web.put("/encoder.pkl", status=302, headers={"Location": target})
    assert refusal(url) == f"it redirects to {target!r}, which is no web address"


def test_a_redirect_from_https_to_http_is_refused(monkeypatch):
    class Answer(requests.Response):
        def __init__(self, location: str):
            super().__init__()
            self.status_code, self.raw = 302, None
            self.headers["Location"] = location

    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: Answer("http://example.org/x"))
    monkeypatch.setattr(requests.Response, "close", lambda self: None)
    with network.Session({}) as session, pytest.raises(requests.RequestException, match="not encrypted"):
        session.follow("https://example.org/x", {})


def test_a_token_does_not_follow_a_redirect_to_another_host(web):
    web.put("/encoder.pkl", CONTENT)
    elsewhere = web.address.replace("127.0.0.1", "localhost") + "/encoder.pkl"
    url = web.put("/gated", status=302, headers={"Location": elsewhere})
    assert get(url, headers={"Authorization": "Bearer secret"}) == CONTENT
    assert [headers.get("Authorization") for _, headers in web.asked] == ["Bearer secret", None]


def test_the_body_of_a_redirect_is_not_read(web):
    """It may have no end."""
    web.put("/encoder.pkl", CONTENT)
    url = web.put("/huge", b"", status=302, headers={"Location": "/encoder.pkl"}, announced=1 << 40)
    assert get(url) == CONTENT


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_instead_of_the_file_is_recognised(web, tmp_path, kind):
    page = b"\n<!DOCTYPE html><html><head><title>Drive -\n Quota &amp; limits\x1b[2J</title></head></html>"
    url = web.put("/encoder.pkl", page, headers={"Content-Type": kind})
    assert refusal(url) == "it gives a page instead of the file ('Drive - Quota & limits[2J')"
    assert kept(tmp_path) == []


def test_what_comes_packed_is_refused(web):
    url = web.put("/encoder.pkl", b"x", headers={"Content-Encoding": "gzip"})
    assert "packed (gzip)" in refusal(url)
    assert web.asked[0][1]["Accept-Encoding"] == "identity"


def test_an_empty_file_is_refused(web):
    assert refusal(web.put("/encoder.pkl", b"")) == "it is empty there"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../../evil", "evil"),
        ("%2e%2e%2f%2e%2e%2fevil", "evil"),
        ("..", "weights"),
        ("%2e%2e", "weights"),
        ("..%5c..%5cevil", "_.._evil"),
        ("a%00b", "a_b"),
        (".bashrc", "bashrc"),
        ("x" * 300 + ".pth", "x" * 76 + ".pth"),
        ("", "weights"),
    ],
)
def test_no_name_climbs_out_of_the_cache(web, tmp_path, name, expected):
    path = Remote(f"https://example.org/{name}", "").path
    assert path.name == expected
    assert path.parent.parent == tmp_path / "weights"


SCRIPT = """
import signal
import sys
from mimbench.download import fetch

# A job in the background, as a CI run may be, is told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def report(progress):
    if progress.stage.startswith("waiting"):
        print(progress.stage, flush=True)

print(fetch(sys.argv[1], report))
"""


def started(url: str, cache: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, url],
        env=os.environ | {"MIMBENCH_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fetch_a_file_once(web, tmp_path):
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if not asked.is_set():
            asked.set()
            go_on.wait(60)

    url = web.put("/encoder.pkl", CONTENT, during=hold)
    first = started(url, tmp_path)
    assert asked.wait(60)
    second = started(url, tmp_path)
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting for another process that fetches encoder.pkl, 0 MB\n"
    go_on.set()
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert outputs[0][-1] == outputs[1][-1]
    assert len(web.asked) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_leaves_what_it_has_and_blocks_nobody(web, tmp_path, how):
    asked, go_on = threading.Event(), threading.Event()
    first = web.put("/encoder.pkl", CONTENT, during=asked.set, breaks=[HALF])
    hold = web.files["/encoder.pkl"]
    hold.after = go_on  # keeps the connection open after half of the file
    process = started(first, tmp_path)
    assert asked.wait(30)
    while not any(part.stat().st_size >= 1 << 20 for part in tmp_path.rglob("*.part")):
        assert process.poll() is None
    process.send_signal(how)
    process.wait(timeout=30)
    go_on.set()
    hold.during = None
    assert get(first, sha256=SHA256) == CONTENT
    assert web.asked[-1][1]["Range"].startswith("bytes=")
