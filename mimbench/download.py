"""Files from the web, fetched once into the cache and taken up where they broke off. Imports no torch.

Beside a file that is not whole yet lies a note of what it is part of (``mimbench.partial``), so that the next
attempt, in whatever process, asks for the rest, and for that of the same file only. Of several processes or
machines that share the cache one fetches a file: the others wait for a lock that dies with its holder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

import requests

from mimbench import __version__
from mimbench.data.cache import cache_folder, free_bytes, writing
from mimbench.errors import UserError
from mimbench.files import locked, sha256, sync_folder
from mimbench.network import Session, reason_of, title_of
from mimbench.partial import Part
from mimbench.progress import Progress, silent

ATTEMPTS = 4  # at a file that breaks off, each going on where the last one ended
BLOCK = 1 << 16  # bytes read at once, and the most that are lost where a connection ends
SPARE = 1 << 28  # bytes left free on the disk
LONGEST = 80  # letters of a file's name that are kept

Report = Callable[[Progress], None]


class FetchError(UserError):
    """A file cannot be had from where it should be. status: what the server said, where it said a number."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    name: what messages call it, and what the cache knows it by. url: http or https. headers: of the request;
    ``Authorization`` never goes to another host. sha256, size: "" and None where they are not known.
    beyond: gives, of a page that came instead of the file, the address that it leads to, or None.
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    size: int | None = None  # bytes
    beyond: Callable[[str], str | None] | None = None

    @property
    def path(self) -> Path:
        """Its place in the cache. Nothing in a name can leave the folder."""
        last = unquote(re.split(r"[?#]", self.name)[0]).rpartition("/")[2]
        last = re.sub(r"[^\w.\-]", "_", last, flags=re.ASCII)
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return cache_folder("weights") / digest / (last.lstrip(".")[-LONGEST:].lstrip(".") or "weights")


def fetch(url: str, report: Report = silent) -> Path:
    """The file that an http(s) ``url`` names, out of the cache if it was fetched before.

    Raises FetchError where it cannot be had whole.
    """
    try:
        with fetched(Remote(re.sub(r"(?<=://)[^/?#]*@", "", url), url), report) as path:
            return path
    except FetchError as error:
        advice = "check the address and the network, or fetch it elsewhere and give the file's path"
        raise FetchError(f"cannot fetch {error}; {advice}", error.status) from error


@contextmanager
def fetched(remote: Remote, report: Report = silent) -> Iterator[Path]:
    """The file of ``remote`` out of the cache, fetched if need be. Nobody else deletes it while it is held.

    Raises FetchError, "NAME: REASON", where it cannot be had whole or is not the one it should be.
    """
    path = remote.path
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    part = Part(path.with_name(f"{path.name}.part"))

    def waits() -> None:
        report(_progress("waiting for another process that fetches", remote, part.size, None))

    with locked(path.with_name(f"{path.name}.lock"), waits):
        try:
            if not path.is_file() or _misfit(remote, path):
                _fetch(remote, part, report)
                if misfit := _misfit(remote, part.path):
                    part.forget()
                    raise _MirrorError(misfit)
                with writing(path.parent):
                    part.path.replace(path)
                    part.forget()
                    sync_folder(path.parent)
        except _MirrorError as failed:
            raise FetchError(f"{remote.name}: {failed}", failed.status) from failed
        yield path


class _MirrorError(Exception):
    """Why a file cannot be had from here, as a clause. again: going on where it ended may help."""

    def __init__(self, reason: str, status: int | None = None, again: bool = False):
        super().__init__(reason)
        self.status, self.again = status, again


def _fetch(remote: Remote, part: Part, report: Report) -> None:
    """Completes ``part``."""
    with Session({"User-Agent": f"mimbench/{__version__}"}) as session:
        for attempt in range(1, ATTEMPTS + 1):
            before = part.size
            try:
                return _go_on(session, remote, part, report)
            except _MirrorError as failed:
                resumable = part.begun(remote.url) is not None
                if not resumable:
                    part.forget()
                further = resumable and failed.again and part.size > before
                if not further or attempt == ATTEMPTS:
                    raise


def _go_on(session: Session, remote: Remote, part: Part, report: Report) -> None:
    begun = part.begun(remote.url)
    have = part.size if begun else 0
    if begun and have == begun.total:
        return
    headers = dict(remote.headers)
    if begun:
        headers |= {"Range": f"bytes={have}-", "If-Range": begun.validator}
    response = _answer(session, remote, headers)
    with response:
        status = response.status_code
        if begun and (
            status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            or (status == HTTPStatus.PARTIAL_CONTENT and not begun.is_continued_by(response.headers, have))
        ):
            part.forget()  # the file there is another one by now
            return _go_on(session, remote, part, report)
        if status == HTTPStatus.OK:
            have = 0
        elif status != HTTPStatus.PARTIAL_CONTENT or not begun:
            raise _MirrorError(f"the server says {status}{_phrase(status)}", status)
        packed = response.headers.get("Content-Encoding", "").strip().lower()
        if packed not in ("", "identity"):
            raise _MirrorError(f"the server sends it packed ({packed}), which was not asked for")
        total = _announced(response)
        if total is not None and have:
            total += have
        _check(remote, part, have, total)
        _receive(remote, part, report, response, have, total)


def _phrase(status: int) -> str:
    return f" ({HTTPStatus(status).phrase})" if status in HTTPStatus._value2member_map_ else ""


def _answer(session: Session, remote: Remote, headers: Mapping[str, str]) -> requests.Response:
    """To a request for the file, which is no page."""
    url: str | None = remote.url
    page = ""
    for _ in range(2):
        if url is None:
            break
        try:
            response = session.follow(url, headers)
        except requests.RequestException as error:
            raise _MirrorError(reason_of(error)) from error
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.status_code != HTTPStatus.OK or kind not in ("text/html", "application/xhtml+xml"):
            return response
        with response:
            page = next(_blocks(response), b"").decode("utf-8", "replace")
        url = remote.beyond(page) if remote.beyond else None
    raise _MirrorError(f"it gives a page instead of the file{title_of(page)}")


def _announced(response: requests.Response) -> int | None:
    """Bytes that follow, where the server says so."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _check(remote: Remote, part: Part, have: int, total: int | None) -> None:
    """Before anything is written: whether it is the file, and whether there is room for it."""
    if None not in (total, remote.size) and total != remote.size:
        part.forget()
        raise _MirrorError(f"it has {total:,} bytes there, expected {remote.size:,}")
    left = (total or remote.size or have) - have
    free = free_bytes(part.path.parent)
    if left + SPARE > free:
        raise UserError(
            f"{remote.name} takes {_size(left)} and {part.path.parent} has {_size(free)} left; free some, or "
            "set MIMBENCH_CACHE to a folder on a larger disk"
        )


def _receive(
    remote: Remote, part: Part, report: Report, response: requests.Response, have: int, total: int | None
) -> None:
    most = total if total is not None else remote.size
    with writing(part.path.parent), open(part.path, "ab" if have else "wb") as file:
        if not have:
            part.begin(remote.url, response.headers, total)
        got = have
        for block in _blocks(response, have, most):
            if not got and block.lstrip().lower().startswith((b"<!doctype html", b"<html")):
                part.forget()
                raise _MirrorError(
                    f"it gives a page instead of the file{title_of(block.decode('utf-8', 'replace'))}"
                )
            got += len(block)
            if most is not None and got > most:
                part.forget()
                raise _MirrorError(f"it sends more than the {most:,} bytes that it should have")
            file.write(block)
            report(_progress("fetching", remote, got, most))
            if most is None:
                _check(remote, part, got, None)
        file.flush()
        os.fsync(file.fileno())
    if not got:
        raise _MirrorError("it is empty there")
    if total is not None and got != total:
        raise _broken_off(got, total, "without a word")


def _blocks(response: requests.Response, got: int = 0, total: int | None = None) -> Iterator[bytes]:
    """Apart from writing, whose OSError says something about the disk. got: bytes from before."""
    try:
        for block in response.iter_content(BLOCK):
            got += len(block)
            yield block
    except requests.RequestException as error:
        raise _broken_off(got, total, reason_of(error)) from error


def _broken_off(got: int, total: int | None, reason: str) -> _MirrorError:
    of = f" of {total:,}" if total else ""
    return _MirrorError(f"it broke off after {got:,}{of} bytes ({reason})", again=True)


def _progress(doing: str, remote: Remote, got: int, total: int | None) -> Progress:
    of = f" of {_size(total)}" if total else ""
    name = remote.name.rpartition("/")[2]
    return Progress(f"{doing} {name}, {_size(got)}{of}", min(got / total, 1.0) if total else 0.0)


def _size(count: int) -> str:
    """343_000_000 -> "343 MB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _misfit(remote: Remote, path: Path) -> str:
    """In what a file is not the one that is known, as a clause; "" where it is as far as known."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"it gave {size:,} bytes, expected {remote.size:,}"
    if remote.sha256 and (digest := sha256(path)) != remote.sha256:
        return f"it gave another file, its sha256 is {digest}, expected {remote.sha256}"
    return ""
