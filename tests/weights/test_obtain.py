"""Entries fetched from their mirrors and converted into the cache, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import huggingface_hub.constants
import pytest
import torch

from mimbench import checkpoint
from mimbench.download import FetchError
from mimbench.errors import UserError
from mimbench.registry import find_origin, origins
from mimbench.spec import Readout
from mimbench.weights import cached, obtain
from mimbench.weights.cached import convert_once
from mimbench.weights.entries import converted_path
from mimbench.weights.entry import Entry, Mirror
from mimbench.weights.given import of_entry
from mimbench.weights.obtain import obtained

from ..web import Web, serving
from .proofs.mae import whole_images

DEAD = "http://127.0.0.1:1/weights.pth"


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[Web]:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as web:
        yield web


@pytest.fixture(scope="module")
def official() -> bytes:
    """A small file in the layout of ``mae``."""
    file = io.BytesIO()
    content = {name: tensor.float() for name, tensor in whole_images().content["model"].items()}
    torch.save({"model": content}, file)
    return file.getvalue()


def entry(*urls: str, **known: object) -> Entry:
    mirrors = tuple(Mirror(url=url, **known) for url in urls)  # type: ignore[arg-type]
    return whole_images().entry.model_copy(update={"mirrors": mirrors})


def originals(folder: Path) -> list[str]:
    return [
        path.name for path in (folder / "weights").rglob("*") if path.is_file() and path.suffix != ".lock"
    ]


def test_an_entry_is_fetched_converted_and_its_original_deleted(web, tmp_path, official):
    found = of_entry(entry(web.put("/mae.pth", official)))
    assert found.path == converted_path(entry(DEAD)) == tmp_path / "encoders" / "mae@vit_base.safetensors"
    assert found.release["file"] == "mae.pth"
    assert found.release["file_sha256"] == hashlib.sha256(official).hexdigest()
    assert originals(tmp_path) == []


def test_an_original_is_kept_where_that_is_asked_for(web, tmp_path, official):
    convert_once(entry(web.put("/mae.pth", official)), keep=True)
    assert originals(tmp_path) == ["mae.pth"]


def test_what_is_converted_is_found_without_a_network(web, official, monkeypatch):
    source = entry(web.put("/mae.pth", official))
    path = of_entry(source).path

    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr("socket.socket.connect", ask)
    monkeypatch.setattr("socket.getaddrinfo", ask)
    assert of_entry(source).path == path


def test_the_next_mirror_is_tried_and_every_reason_told(web, official):
    wrong = "0" * 64
    bad = Mirror(url=web.put("/other.pth", b"another file"), sha256=wrong)
    gone = Mirror(url=f"{web.address}/gone.pth")
    good = Mirror(url=web.put("/mae.pth", official))
    base = entry(DEAD)
    mirrors = (*base.mirrors, bad, gone)
    with pytest.raises(UserError) as raised:
        of_entry(base.model_copy(update={"mirrors": mirrors, "page": "https://example.org/page"}))
    said = str(raised.value)
    for words in (
        f"mae@vit_base: {DEAD}: Connection refused; ",
        f"{bad.url}: it gave another file, its sha256 is {hashlib.sha256(b'another file').hexdigest()}, ",
        f"expected {wrong}; ",
        f"{gone.url}: the server says 404 (Not Found); ",
        "fetch it by hand from https://example.org/page and run mimbench weights convert PATH "
        "--as mae@vit_base",
    ):
        assert words in said
    assert not converted_path(base).exists()
    assert of_entry(base.model_copy(update={"mirrors": (*mirrors, good)})).path == converted_path(base)


def test_what_has_no_mirror_is_a_sentence_that_says_where_to_get_it(web):
    with pytest.raises(UserError, match=r"it can be fetched by hand only; fetch it by hand from https://x"):
        of_entry(entry().model_copy(update={"page": "https://x"}))


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("gdrive:a-b_c", "https://drive.google.com/file/d/a-b_c/view"),
        ("hf:owner/repo/sub/x.pth", "https://huggingface.co/owner/repo"),
        ("https://example.org/x.pth", "https://example.org/x.pth"),
    ],
)
def test_a_mirror_is_named_as_a_browser_takes_it_where_no_page_is_known(url, place):
    assert f"fetch it by hand from {place} and run" in obtain.by_hand(entry(url))


class _Evil:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["MIMBENCH_CACHE"]) / "it-ran"),)


def _in_archive() -> bytes:
    """As ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save({"model": _Evil()}, file)
    return file.getvalue()


@pytest.mark.parametrize("broken", ["cut", "pickle", "noise", "archive"])
def test_a_file_that_is_no_weights_runs_nothing_and_gives_way_to_the_next_mirror(
    web, tmp_path, official, broken
):
    content = {
        "cut": official[: len(official) // 2],
        "pickle": pickle.dumps(_Evil()),
        "noise": b"\x01" * 999,
        "archive": _in_archive(),
    }
    first, second = web.put("/a/mae.pth", content[broken]), web.put("/b/mae.pth", official)
    of_entry(entry(first, second))
    with pytest.raises(UserError, match=r"mae\.pth"):
        of_entry(entry(first).model_copy(update={"name": "mae@vit_other"}))
    assert not (tmp_path / "it-ran").exists()
    assert originals(tmp_path) == []  # else it would be the same broken file for ever


def test_a_file_of_another_layout_stays_for_the_next_attempt(web, tmp_path):
    file = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(3)}}, file)
    url = web.put("/mae.pth", file.getvalue())
    for _ in range(2):
        with pytest.raises((UserError, LookupError)):
            of_entry(entry(url))
    assert len(web.asked) == 1
    assert not converted_path(entry(url)).exists()


def test_a_mirror_of_the_same_weights_may_be_of_another_layout(web, official, monkeypatch):
    state = torch.load(io.BytesIO(official))["model"]
    file = io.BytesIO()
    torch.save({"inner": state}, file)
    like = replace(find_origin("mae"), key="mae_again", containers=(("inner",),))
    monkeypatch.setitem(origins(), "mae_again", like)
    mirror = Mirror(url=web.put("/again.pth", file.getvalue()), origin="mae_again")
    source = entry(DEAD)
    source = source.model_copy(update={"mirrors": (*source.mirrors, mirror), "container": ("model",)})
    assert of_entry(source).release["origin"] == "mae_again"


def test_what_an_older_version_converted_is_made_anew(web, official, monkeypatch):
    source = entry(web.put("/mae.pth", official))
    of_entry(source)
    raised = replace(find_origin("mae"), version=99)
    monkeypatch.setitem(origins(), "mae", raised)
    assert of_entry(source).release["origin_version"] == 99
    assert len(web.asked) == 2


@pytest.mark.parametrize(
    "corrected",
    [{"std": (0.5, 0.5, 0.5)}, {"readout": Readout(token="cls")}, {"options": {"layer_scale": None}}],
)
def test_a_correction_of_the_catalogue_reaches_what_was_converted_before(web, official, corrected):
    source = entry(web.put("/mae.pth", official))
    before = of_entry(source).metadata
    changed = dict(corrected)
    if "options" in changed:
        changed["options"] = source.options | changed["options"]
    after = of_entry(source.model_copy(update=changed)).metadata
    decisive = ("backbone_config", "mean", "std", "readout")
    assert [name for name in decisive if before[name] != after[name]] != []
    assert len(web.asked) == 2


def test_a_damaged_converted_file_is_made_anew(web, official):
    source = entry(web.put("/mae.pth", official))
    path = of_entry(source).path
    path.write_bytes(path.read_bytes()[:100])
    checkpoint.load_encoder(of_entry(source).path)


def test_an_interrupted_conversion_leaves_nothing_half(web, tmp_path, official, monkeypatch):
    source = entry(web.put("/mae.pth", official))

    def stop(old: Path, new: Path) -> None:
        if Path(new).parent.name == "encoders":
            raise KeyboardInterrupt
        os.rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            of_entry(source)
    assert [path.suffix for path in (tmp_path / "encoders").iterdir()] == [".lock"]
    assert of_entry(source).release["file"] == "mae.pth"
    assert len(web.asked) == 1  # the original was whole


def test_of_two_that_ask_at_once_one_converts_and_the_other_finds(web, official, monkeypatch):
    source = entry(web.put("/mae.pth", official))
    together, calls, told = threading.Barrier(2), [], []

    def convert(*arguments: object) -> object:
        calls.append(arguments)
        return real(*arguments)

    def get() -> str:
        together.wait(30)
        return of_entry(source, report=told.append).key

    real = cached.convert
    monkeypatch.setattr(cached, "convert", convert)
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(get) for _ in range(2))
    assert first.result() == second.result()
    assert (len(calls), len(web.asked)) == (1, 1)
    assert "converting mae@vit_base" in [progress.stage for progress in told]


def fetched(mirror: Mirror) -> bytes:
    with obtained(mirror) as path:
        return path.read_bytes()


def test_drive_is_asked_by_id_and_its_page_on_viruses_passed(web, monkeypatch):
    monkeypatch.setattr(obtain, "DRIVE", f"{web.address}/download")
    form = (
        '<html><head><title>Google Drive - Virus scan warning</title></head><body><form id="other">'
        '<input type="hidden" name="no" value="1"></form><form id="download-form" action="https://evil.example">'
        '<input type="hidden" name="id" value="a-b_c"><input type="hidden" name="uuid" value="1&amp;2">'
        '<input type="submit" value="Download anyway"></form></body></html>'
    )
    web.put("/download", form.encode(), headers={"Content-Type": "text/html; charset=utf-8"})
    web.put("/download?id=a-b_c&uuid=1%262", b"the file")
    assert fetched(Mirror(url="gdrive:a-b_c")) == b"the file"
    first, second = (parse_qs(urlsplit(path).query) for path in web.paths)
    assert first == {"id": ["a-b_c"], "export": ["download"], "confirm": ["t"]}
    assert second == {"id": ["a-b_c"], "uuid": ["1&2"]}


def test_drive_s_page_on_its_quota_is_told(web, monkeypatch):
    monkeypatch.setattr(obtain, "DRIVE", f"{web.address}/download")
    page = b"<html><head><title>Google Drive - Quota exceeded</title></head></html>"
    web.put("/download", page, headers={"Content-Type": "text/html"})
    with pytest.raises(
        FetchError, match=r"^gdrive:abc: it gives a page .*\('Google Drive - Quota exceeded'\)$"
    ):
        fetched(Mirror(url="gdrive:abc"))


@pytest.fixture
def hub(web, monkeypatch, tmp_path) -> Web:
    monkeypatch.setenv("HF_ENDPOINT", web.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return web


def test_the_hub_is_asked_at_its_endpoint_for_the_revision_with_a_token_for_it_alone(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.put("/cdn", b"the file")
    elsewhere = hub.address.replace("127.0.0.1", "localhost") + "/cdn"
    hub.put("/owner/repo/resolve/abc/sub/model.safetensors", status=302, headers={"Location": elsewhere})
    mirror = Mirror(url="hf:owner/repo/sub/model.safetensors", revision="abc")
    assert fetched(mirror) == b"the file"
    assert [headers["Authorization"] for _, headers in hub.asked] == ["Bearer hf_secret", None]


def test_two_revisions_are_two_files(hub):
    hub.put("/owner/repo/resolve/a/x.pth", b"one")
    hub.put("/owner/repo/resolve/b/x.pth", b"two")
    both = [Mirror(url="hf:owner/repo/x.pth", revision=revision) for revision in "ab"]
    with obtained(both[0], keep=True) as first, obtained(both[1], keep=True) as second:
        assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")


def test_what_the_hub_keeps_to_some_accounts_is_said(hub):
    hub.put("/owner/repo/resolve/main/x.pth", b"", status=401)
    with pytest.raises(FetchError, match=r"401 \(Unauthorized\) \(if only some accounts .* set HF_TOKEN"):
        fetched(Mirror(url="hf:owner/repo/x.pth"))


def test_the_hub_s_own_cache_is_used_and_left_alone(hub, tmp_path):
    snapshot = tmp_path / "hub" / "models--owner--repo" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "x.pth").write_bytes(b"from the hub")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    assert fetched(Mirror(url="hf:owner/repo/x.pth")) == b"from the hub"
    assert (snapshot / "x.pth").is_file()
    assert hub.asked == []


def test_the_hub_is_not_asked_when_it_is_offline(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        fetched(Mirror(url="hf:owner/repo/x.pth"))
    assert hub.asked == []


def test_entries_with_one_file_do_not_delete_it_from_each_other(web):
    """The first is done with it while the second still reads: the lock makes the second wait."""
    mirror = Mirror(url=web.put("/x.pth", b"the file"))
    with obtained(mirror) as path:
        assert path.read_bytes() == b"the file"
        lock = path.with_name("x.pth.lock")
        script = f"from filelock import FileLock; FileLock({str(lock)!r}).acquire(timeout=0)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "Timeout" in done.stderr
    assert not path.exists()
