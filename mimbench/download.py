"""Weights from the web, fetched once into the cache. Imports no torch."""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import urlopen

from mimbench.data.cache import cache_folder
from mimbench.errors import UserError
from mimbench.files import write_atomically

TIMEOUT = 30.0  # seconds without an answer


def fetch(url: str) -> Path:
    """The file that an http(s) ``url`` names, out of the cache if it was fetched before.

    Raises UserError where it cannot be had whole.
    """
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{Path(urlsplit(url).path).name or 'weights'}"
    path = cache_folder("weights") / name
    if not path.is_file():
        write_atomically(path, lambda file: _copy(url, file))
    return path


def _copy(url: str, file: IO[bytes]) -> None:
    try:
        answer = urlopen(url, timeout=TIMEOUT)
    except (OSError, HTTPException, ValueError) as error:
        raise _unreachable(url, getattr(error, "reason", None) or error) from error
    with answer:
        expected, got = answer.headers.get("Content-Length"), 0
        while block := _read(answer, url):
            file.write(block)
            got += len(block)
        if expected is not None and got != int(expected):
            raise _unreachable(url, f"it broke off after {got} of {expected} bytes")


def _read(answer: IO[bytes], url: str) -> bytes:
    """Apart from writing, whose OSError says something about the disk."""
    try:
        return answer.read(1 << 20)
    except (OSError, HTTPException) as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, reason: object) -> UserError:
    return UserError(
        f"cannot fetch {url}: {reason}; check the address and the network, or fetch it elsewhere and give "
        "the file's path"
    )
