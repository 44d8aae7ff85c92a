"""A sheet of pictures as plain data: rows of panels below headings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mimbench.protocol import sampled

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split

RIGHT, WRONG = "#1a7f37", "#cf222e"  # frames: green, red


@dataclass(frozen=True)
class Box:
    """A rectangle on a panel, in its pixels."""

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    colour: str = RIGHT


@dataclass(frozen=True)
class Panel:
    """One picture. image: uint8 [H, W, 3]; frame: a colour around it, "" for none."""

    image: np.ndarray
    caption: str = ""
    frame: str = ""
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """Panels in rows, one heading a column.

    legend: (name, colour) of what colours stand for. jobs: id of each pre-training that is shown -> name of
    its row. data: name and fingerprint of what the images are from.
    """

    name: str  # of its file
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Panel, ...], ...]
    note: str = ""
    legend: tuple[tuple[str, str], ...] = field(default=())
    jobs: Mapping[str, str] = field(default_factory=dict)
    data: tuple[str, str] = ("", "")


def file_name(*parts: str) -> str:
    """A name for a file out of text that may hold anything: ``masked-mae-mask_ratio-0.5``."""
    return "-".join(re.sub(r"[^A-Za-z0-9._+]+", "-", part).strip("-") for part in parts)


def spread_over_classes(split: Split, wanted: int) -> list[int]:
    """Places of ``wanted`` images, of as many classes as there are: the first of each, then the second."""
    if split.labels is None:
        return sampled(len(split), wanted)
    members = [np.flatnonzero(split.labels == label) for label in np.unique(split.labels)]
    order = sorted(
        (place, number) for number, own in enumerate(members) for place in range(min(len(own), wanted))
    )
    return [int(members[number][place]) for place, number in order[:wanted]]


def class_name(data: Dataset, label: int) -> str:
    """A class for people, short enough for a caption."""
    assert data.classes is not None
    name = data.classes[label]
    return name if len(name) <= 22 else name[:21] + "…"
