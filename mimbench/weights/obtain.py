"""The file of an entry: at hand, or from one of its mirrors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from mimbench.download import FetchError, Remote, fetched
from mimbench.files import sha256
from mimbench.progress import Progress, silent

if TYPE_CHECKING:
    from mimbench.weights.entry import Entry, Mirror

# Where Google Drive gives files by their id. With ``confirm`` it also gives those that are too large for its
# virus scan; where it asks all the same, its page has a form that leads on.
DRIVE = "https://drive.usercontent.google.com/download"


@contextmanager
def obtained(
    mirror: Mirror, report: Callable[[Progress], None] = silent, keep: bool = False
) -> Iterator[Path]:
    """The file of a mirror, fetched if need be, for as long as it is held; afterwards deleted.

    keep: not to delete it. It also stays where what is done with it raises: that may have another reason
    than the file. What the Hugging Face hub's own cache holds is used from there and stays.

    Raises FetchError where it cannot be had whole or is not the file that the catalogue knows.
    """
    if (found := _in_hub_cache(mirror)) is not None:
        yield found
        return
    remote = remote_of(mirror)
    if mirror.url.startswith("hf:") and _hub_is_offline() and not remote.path.is_file():
        raise FetchError(f"{remote.name}: HF_HUB_OFFLINE is set, and it is not in the hub's cache")
    with _explained(mirror), fetched(remote, report) as path:
        yield path
        if not keep:
            path.unlink(missing_ok=True)


@contextmanager
def _explained(mirror: Mirror) -> Iterator[None]:
    try:
        yield
    except FetchError as error:
        if not mirror.url.startswith("hf:") or error.status not in (401, 403):
            raise
        hint = "if only some accounts may have it, set HF_TOKEN to a token of one"
        raise FetchError(f"{error} ({hint})", error.status) from error


def discard(mirror: Mirror) -> None:
    """Delete the file of a mirror that turned out to be broken, so that it is fetched anew."""
    remote_of(mirror).path.unlink(missing_ok=True)


def fetched_path(mirror: Mirror) -> Path | None:
    """Where its file lies in the cache, or in the hub's; None where it is to be fetched."""
    path = remote_of(mirror).path
    return path if path.is_file() else _in_hub_cache(mirror, check=False)


def as_of(entry: Entry, mirror: Mirror) -> Entry:
    """The entry as a mirror's file has it, which may be of another layout."""
    if mirror.origin or mirror.container is not None:
        return entry.model_copy(update={"container": mirror.container})
    return entry


def layouts(entry: Entry) -> list[tuple[Entry, str]]:
    """The ways in which its file may be laid out, each with its origin; the entry's own, "", first."""
    others = [(as_of(entry, mirror), mirror.origin) for mirror in entry.mirrors if mirror.origin]
    return [(entry, ""), *others]


def by_hand(entry: Entry) -> str:
    """What to do where no mirror can be used."""
    place = entry.page or next(map(browsable, entry.mirrors), "")
    return f"fetch it by hand from {place} and run mimbench weights convert PATH --as {entry.name}"


def browsable(mirror: Mirror) -> str:
    """The address that a person opens in a browser."""
    kind, _, rest = mirror.url.partition(":")
    if kind == "gdrive":
        return f"https://drive.google.com/file/d/{rest}/view"
    return f"https://huggingface.co/{_hub_parts(mirror)[0]}" if kind == "hf" else mirror.url


def remote_of(mirror: Mirror) -> Remote:
    """The mirror as an address that a web server knows."""
    kind, _, rest = mirror.url.partition(":")
    name, url = mirror.url, mirror.url
    headers: dict[str, str] = {}
    beyond = None
    if kind == "gdrive":
        url, beyond = _drive({"id": rest, "export": "download", "confirm": "t"}), _through
    elif kind == "hf":
        name, url, headers = _on_hub(mirror)
    return Remote(name, url, headers, mirror.sha256, mirror.size, beyond)


def _on_hub(mirror: Mirror) -> tuple[str, str, dict[str, str]]:
    """Name, address (HF_ENDPOINT's) and headers (with the user's token) of a file on the hub."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    repo, file = _hub_parts(mirror)
    token = build_hf_headers(library_name="mimbench")
    headers = {name: value for name, value in token.items() if name.lower() == "authorization"}
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    url = hf_hub_url(repo, file, revision=mirror.revision, endpoint=endpoint)
    return f"hf:{repo}@{mirror.revision}/{file}", url, headers


def _hub_parts(mirror: Mirror) -> tuple[str, str]:
    owner, name, file = mirror.url.removeprefix("hf:").split("/", 2)
    return f"{owner}/{name}", file


def _hub_is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _in_hub_cache(mirror: Mirror, check: bool = True) -> Path | None:
    """The file where ``huggingface_hub`` keeps it, if it does and (check) it is the one that is known."""
    if not mirror.url.startswith("hf:"):
        return None
    from huggingface_hub import try_to_load_from_cache

    repo, file = _hub_parts(mirror)
    found = try_to_load_from_cache(repo, file, revision=mirror.revision)
    if not isinstance(found, str) or (check and mirror.sha256 and sha256(Path(found)) != mirror.sha256):
        return None
    return Path(found)


def _drive(query: dict[str, str]) -> str:
    return f"{DRIVE}?{urlencode(query)}"


def _through(page: str) -> str | None:
    """From Drive's page on the virus scan, the address of the file: what its form would ask for."""
    form = _Form()
    form.feed(page)
    return _drive(form.fields) if form.fields else None


class _Form(HTMLParser):
    """The hidden fields of the form ``download-form``."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.inside = given.get("id") == "download-form"
        elif tag == "input" and self.inside and given.get("type") == "hidden" and given.get("name"):
            self.fields[str(given["name"])] = given.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.inside = False
