"""A file that is not whole yet, and beside it a note of what it is part of. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mimbench.data.cache import writing
from mimbench.files import write_atomically


@dataclass(frozen=True)
class Begun:
    """What was begun. validator: a strong ETag or the date of the last change. total: bytes, where known."""

    url: str
    validator: str
    total: int | None

    def is_continued_by(self, headers: Mapping[str, str], have: int) -> bool:
        """Whether an answer to the request for what follows the first ``have`` bytes is just that."""
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != have:
            return False
        if match[2] != "*" and self.total is not None and int(match[2]) != self.total:
            return False
        strong = _strong(headers)
        return not (strong and _is_strong(self.validator)) or strong == self.validator


def _is_strong(etag: str) -> bool:
    return etag.startswith('"')  # weak ones begin with W/


def _strong(headers: Mapping[str, str]) -> str:
    etag = headers.get("ETag", "").strip()
    return etag if _is_strong(etag) else ""


@dataclass(frozen=True)
class Part:
    """A partial file."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        """Bytes; 0 where there is no file."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def begun(self, url: str) -> Begun | None:
        """What it is part of; None where it is nothing, or of another address."""
        try:
            begun = Begun(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # none there, or of another version
            return None
        return begun if begun.url == url and self.size else None

    def begin(self, url: str, headers: Mapping[str, str], total: int | None) -> None:
        """Note what is begun. An answer without anything to know the file by (RFC 9110, section 13.1.5, wants
        a strong ETag or a date) leaves no note: what comes of it cannot be gone on with."""
        self.note.unlink(missing_ok=True)
        if validator := _strong(headers) or headers.get("Last-Modified", ""):
            text = json.dumps(asdict(Begun(url, validator, total)))
            write_atomically(self.note, lambda file: file.write(text.encode()))

    def forget(self) -> None:
        with writing(self.path.parent):
            self.note.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
