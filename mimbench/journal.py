"""What was asked of a results folder, and which records answer it. Imports no torch.

``<results>/requests/<hash>.json``, one file a request: its options as an experiment file has them, what the
experiment is about, the ids of its jobs and when it was asked first and last. Records stand without it;
it tells which of them belong together, and how to ask for them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mimbench.errors import UserError
from mimbench.files import make_folder, write_atomically
from mimbench.request import About, Request
from mimbench.spec import Frozen, content_hash

FOLDER = "requests"
HERE = ("out", "dry_run", "workers", "micro_batch")  # how it was done where it was done, not what was asked


class Asked(Frozen):
    """One request of a results folder."""

    options: dict[str, Any]  # of mimbench run, those that are not at their defaults
    about: About | None = None
    jobs: tuple[str, ...]  # ids, those that were done already included
    first: str  # ISO 8601, UTC
    last: str

    @property
    def id(self) -> str:
        """The same however often it is asked."""
        return content_hash([self.options, sorted(self.jobs)])


def note(folder: Path, request: Request, jobs: Iterable[str]) -> Path:
    """Write down that ``request`` was asked of a results folder and takes ``jobs``; the file."""
    options = request.model_dump(mode="json", exclude_defaults=True, exclude={"about", *HERE})
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    asked = Asked(options=options, about=request.about, jobs=tuple(jobs), first=now, last=now)
    path = make_folder(Path(folder) / FOLDER) / f"{asked.id}.json"
    if path.exists():
        asked = asked.model_copy(update={"first": _read(path).first})
    text = json.dumps(asked.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def read(folder: Path) -> list[Asked]:
    """All requests of a results folder, in the order in which they were first asked; none where none are
    noted, as in folders of single records. Raises UserError for a damaged file."""
    inner = Path(folder) / FOLDER
    found = [_read(path) for path in sorted(inner.glob("*.json"))] if inner.is_dir() else []
    return sorted(found, key=lambda asked: (asked.first, asked.id))


def _read(path: Path) -> Asked:
    try:
        return Asked.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path} is damaged ({where}: {first['msg']}); move it away, no result depends on it"
        ) from error
