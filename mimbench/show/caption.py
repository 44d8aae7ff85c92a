"""What is known of a picture, kept as JSON beside it so that pages can caption it. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Caption(BaseModel):
    """What is seen on a picture, and whose it is."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: str  # one of show.KINDS
    title: str
    headings: tuple[str, ...]  # of its columns
    lines: int  # of pictures below the headings
    note: str = ""
    legend: tuple[str, ...] = ()  # what colours stand for
    jobs: dict[str, str]  # id of each pre-training that is shown -> name of its row
    data: str  # name of the data that the images are from
    fingerprint: str  # of that data
    seed: int  # of the rows and of the masks
    sha256: str  # of the picture

    def matches(self, picture: bytes) -> bool:
        """Whether it was written for this file, and not for one that was replaced since."""
        return hashlib.sha256(picture).hexdigest() == self.sha256

    @property
    def alt(self) -> str:
        """The picture in words, for who does not see it."""
        columns = ", ".join(" ".join(heading.split()) for heading in self.headings)
        return f"{self.title}: {self.lines} lines of pictures; columns: {columns}"


def caption_path(picture: Path) -> Path:
    """Where the caption of a picture lies."""
    return picture.with_suffix(".json")


def caption_of(picture: bytes, **facts: Any) -> Caption:
    """The caption of a file's content."""
    return Caption(sha256=hashlib.sha256(picture).hexdigest(), **facts)


def read_caption(picture: Path) -> Caption | None:
    """The caption beside a picture; None where there is none that can be read."""
    try:
        return Caption.model_validate_json(caption_path(picture).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
